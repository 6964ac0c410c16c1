// cuda/threshold_finder.h: the thresholds of one outlier fraction, for many vectors of one length.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "cuda/kernels/quantile.h"

namespace kvcal::codec {

struct ThresholdPair {
  float lower = 0, upper = 0;
};

/// Finds what quantile() of vector_codec.h gives at p/2 and 1 - p/2, by a look at each number: a small fraction
/// needs the few smallest and largest only. One for each thread: it has a buffer.
class ThresholdFinder {
 public:
  /// count: numbers in a vector, 1 or more. Throws base::WrongUsage where it is 0, or p is not in 0 <= p < 0.5.
  ThresholdFinder(std::size_t count, double outlier_fraction);

  /// x: [count], finite. Throws base::InvalidInput for another length.
  [[nodiscard]] ThresholdPair find(std::span<const float> x);

 private:
  void keep_extremes(std::span<const float> x);

  std::size_t count_;
  double lower_q_, upper_q_;
  QuantilePlace lower_, upper_;
  bool by_extremes_ = false;  // the few smallest and largest decide: so many of each
  std::size_t low_count_ = 0, high_count_ = 0;
  std::vector<float> low_, high_;  // the smallest, ascending; the largest, descending
  std::vector<float> buffer_;
};

}  // namespace kvcal::codec
