// kmeans/weighted_kmeans.h: weighted one-dimensional k-means, solved to the proven global optimum.
//
// Minimises sum_i weights[i] (points[i] - q(points[i]))^2 over all sets of k centroids, q(x) being the
// centroid nearest to x. Lloyd's iterations end in a local minimum; here the line is cut by dynamic
// programming over a histogram, a certificate says which of its bins can hold a cut of an optimal solution,
// and only the points of those bins are sorted and solved exactly. docs/solver.md has the algorithm, the
// proof and the bound on rounding.
//
// Results do not depend on the number of threads, nor on the machine.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvcal::kmeans {

/// How the line is cut. Defaults give the exact optimum for all CPUs at hand.
struct Options {
  int clusters = 8;  ///< k, 1 to 256
  /// May stop once objective <= lower_bound (1 + relative_gap); 0: the optimum itself.
  double relative_gap = 0;
  int threads = 0;  ///< 0: all
};

/// objective is that of the clusters' exact means; `centroids` are those means rounded to double.
struct Solution {
  std::vector<double> centroids;  ///< [k], ascending, in the units of the points
  double objective = 0;           ///< sum w (x - nearest centroid)^2; infinite where that exceeds double
  /// No k centroids do better; within rounding of `objective` when relative_gap is 0.
  double lower_bound = 0;
};

/// The optimal centroids of points with weights, both [n], n >= 1, finite, weights >= 0. A point of weight
/// zero does not count. Fewer distinct points than k: the last centroid is repeated. Throws
/// base::InvalidInput for no points, for the first index whose point is not finite or whose weight is not
/// finite or negative, and when all weights are zero; base::WrongUsage for options out of range and spans of
/// different sizes.
[[nodiscard]] Solution solve(std::span<const float> points, std::span<const float> weights,
                             const Options& options);
[[nodiscard]] Solution solve(std::span<const double> points, std::span<const double> weights,
                             const Options& options);

/// Points and weights that come in chunks, so that a layer needs no one array. Chunks of 2^14 to 2^20 points
/// run best: a chunk is the unit of parallel work, and each thread holds one at a time. Real: float or
/// double.
template <typename Real>
class PointSource {
 public:
  virtual ~PointSource() = default;
  [[nodiscard]] virtual std::int64_t num_chunks() const = 0;
  /// Resizes and fills points and weights with those of a chunk, which may be empty. Called from several
  /// threads at once and several times for each chunk; always gives the same.
  virtual void load(std::int64_t chunk, std::vector<Real>& points, std::vector<Real>& weights) const = 0;
};

/// One Solution for each of `clusters` (each 1 to 256, in any order), all from the same few passes over the
/// data. Throws as solve() does, indices counted over the chunks in order; rethrows what load() throws.
[[nodiscard]] std::vector<Solution> solve_all(const PointSource<float>& source, std::span<const int> clusters,
                                              double relative_gap, int threads);
[[nodiscard]] std::vector<Solution> solve_all(const PointSource<double>& source,
                                              std::span<const int> clusters, double relative_gap,
                                              int threads);

}  // namespace kvcal::kmeans
