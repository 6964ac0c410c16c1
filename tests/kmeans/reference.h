// tests/kmeans/reference.h: an independent solver, O(k n^2) in 64 or 113 digits of two, that shares no idea
// with the library's.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace kvcal::kmeans::testing {

/// Quadruple precision, which g++ and clang++ have on x86-64 in software.
__extension__ using Quad = __float128;

template <typename Wide>
struct ReferenceOf {
  Wide objective = 0;
  Wide spread = 0;  // sum w (x - mean)^2
};
using Reference = ReferenceOf<long double>;

/// The least sum w (x - q(x))^2 over all sets of k centroids, by the textbook dynamic program over all cuts;
/// costs by Welford's update in Wide, one row at a time.
template <typename Wide = long double, typename Real>
ReferenceOf<Wide> reference_objective(const std::vector<Real>& points, const std::vector<Real>& weights,
                                      int k) {
  struct Point {
    Wide x, w;
  };
  std::vector<Point> sorted;
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (weights[i] > 0) sorted.push_back({points[i], weights[i]});
  }
  std::sort(sorted.begin(), sorted.end(), [](const Point& a, const Point& b) { return a.x < b.x; });
  const std::size_t n = sorted.size();
  // cost[i][j - i]: points i to j as one cluster.
  std::vector<std::vector<Wide>> cost(n);
  for (std::size_t i = 0; i < n; ++i) {
    Wide weight = 0;
    Wide mean = 0;  // less the first point
    Wide scatter = 0;
    for (std::size_t j = i; j < n; ++j) {
      const Wide x = sorted[j].x - sorted[i].x;
      const Wide total = weight + sorted[j].w;
      const Wide delta = x - mean;
      scatter += weight / total * sorted[j].w * delta * delta;
      mean += delta * (sorted[j].w / total);
      weight = total;
      cost[i].push_back(scatter);
    }
  }
  std::vector<Wide> best(n + 1, static_cast<Wide>(std::numeric_limits<long double>::infinity()));
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
