// calib/fit/qnorm.h: what a datatype does to the distribution of a tensor's inliers: Q-Norm, and the error.
#pragma once

#include <span>
#include <vector>

#include "kmeans/weighted_kmeans.h"

namespace kvcal::calib {

/// Mean and standard deviation of a layer's inliers before and after quantising give Q-Norm (KVQuant
/// section 3.6): scale = s1/s2, offset = m1 - m2 scale, unweighted over the population, in double. For each
/// datatype of `centroids`.
struct QNorm {
  double scale = 1;
  double offset = 0;
};
[[nodiscard]] std::vector<QNorm> qnorm(const kmeans::PointSource<double>& source,
                                       const std::vector<std::vector<float>>& centroids, int threads);

/// sum w (x' - q(x'))^2 over the source, in its scaled weights.
[[nodiscard]] double objective_of(const kmeans::PointSource<double>& source, std::span<const float> centroids,
                                  int threads);

}  // namespace kvcal::calib
