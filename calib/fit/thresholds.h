// calib/fit/thresholds.h: who is an outlier: quantile thresholds, per channel for keys and per token for values.
//
// For an outlier fraction p the thresholds are the p/2 and 1 - p/2 quantiles with linear interpolation
// (codec::quantile; Hyndman and Fan 1996, type 7; numpy's default). p = 0 gives minimum and maximum. KVQuant
// section 3.4.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "calib/engine/layer_capture.h"

namespace kvcal::calib {

struct Thresholds {
  std::vector<float> lower, upper;
};

/// One pair per channel over all rows, for each fraction. A column at a time is copied, never the whole
/// matrix.
[[nodiscard]] std::vector<Thresholds> channel_thresholds(const CapturedRows& rows,
                                                         std::span<const double> fractions, int threads);

/// One pair per row and group of channels / groups consecutive channels, [rows * groups], for each fraction.
[[nodiscard]] std::vector<Thresholds> row_thresholds(const CapturedRows& rows, int groups,
                                                     std::span<const double> fractions, int threads);

/// Zero and range of a pair of thresholds: x' = (x - zero) / range, in [-1, 1] between them. range is 0 where
/// the pair is equal or its range rounds to 0 in fp16, in which it is stored: such a channel is constant,
/// dequantises to zero and is left out of the fit.
struct Normaliser {
  double zero = 0;
  double range = 0;
};
[[nodiscard]] Normaliser normaliser(float lower, float upper);

}  // namespace kvcal::calib
