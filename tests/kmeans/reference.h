// tests/kmeans/reference.h: an independent solver, O(k n^2) in long double, that shares no idea with the
// library's.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace kvcal::kmeans::testing {

struct Reference {
  long double objective = 0;
  long double spread = 0;  // sum w (x - mean)^2
};

/// The least sum w (x - q(x))^2 over all sets of k centroids, by the textbook dynamic program over all cuts;
/// costs by Welford's update in long double, one row at a time.
template <typename Real>
Reference reference_objective(const std::vector<Real>& points, const std::vector<Real>& weights, int k) {
  struct Point {
    long double x, w;
  };
  std::vector<Point> sorted;
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (weights[i] > 0) sorted.push_back({points[i], weights[i]});
  }
  std::sort(sorted.begin(), sorted.end(), [](const Point& a, const Point& b) { return a.x < b.x; });
  const std::size_t n = sorted.size();
  // cost[i][j - i]: points i to j as one cluster.
  std::vector<std::vector<long double>> cost(n);
  for (std::size_t i = 0; i < n; ++i) {
    long double weight = 0;
    long double mean = 0;  // less the first point
    long double scatter = 0;
    for (std::size_t j = i; j < n; ++j) {
      const long double x = sorted[j].x - sorted[i].x;
      const long double total = weight + sorted[j].w;
      const long double delta = x - mean;
      scatter += weight / total * sorted[j].w * delta * delta;
      mean += delta * (sorted[j].w / total);
      weight = total;
      cost[i].push_back(scatter);
    }
  }
  std::vector<long double> best(n + 1, std::numeric_limits<long double>::infinity());
  best[0] = 0;
  for (int layer = 0; layer < k; ++layer) {
    for (std::size_t end = n; end > 0; --end) {
      for (std::size_t begin = 0; begin < end; ++begin) {
        best[end] = std::min(best[end], best[begin] + cost[begin][end - 1 - begin]);
      }
    }
  }
  return {best[n], cost[0].back()};
}

}  // namespace kvcal::kmeans::testing
