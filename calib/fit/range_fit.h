// calib/fit/range_fit.h: scale and zero of each channel, fitted to the weighted error in turn with the datatype.
//
// Thresholds say who is an outlier. They need not say where the levels lie: a channel's levels range * level + zero may stretch
// over less than its thresholds, where most of its weight is. Range and zero of every channel and the levels are fitted in turn,
// each by weighted least squares, the others fixed: no step raises the error (docs/method.md, "Fitted ranges").
#pragma once

#include <cstdint>
#include <vector>

#include "calib/engine/layer_capture.h"
#include "calib/fit/fit_source.h"
#include "calib/fit/thresholds.h"
#include "calib/fit/weight_sum.h"

namespace kvcal::calib {

/// The inliers of a tensor whose thresholds are a channel's, by channel: weight and mean of 512 equal parts of each range. What
/// is fitted to the parts errs by what lies on both sides of a boundary within one, so that the result has to be judged by the
/// numbers themselves.
class RangeFit {
 public:
  /// One reading of the tensor; it is not needed afterwards.
  RangeFit(const CapturedTokens& tokens, const Thresholds& thresholds, Weighting weighting, int threads);

  /// Levels for the ranges of the thresholds, and what they leave: the optimum of the parts' means. The numbers' own optimum
  /// differs by what lies on both sides of a boundary within a part, well below a hundredth.
  struct Start {
    std::vector<double> levels;
    double error = 0;
  };
  [[nodiscard]] Start start(int levels, int threads) const;

  /// Each channel's zero and range. levels: ascending, at least one, in units of the thresholds' ranges: where the fit begins.
  /// It ends when a turn lowers the error by less than a 1e-5th of it, or after 200. A channel without weight, or whose
  /// thresholds are equal, keeps the range of its thresholds. The same for any number of threads.
  [[nodiscard]] std::vector<Normaliser> fit(std::vector<double> levels, int threads) const;

 private:
  /// Where the levels lie, in units of the thresholds' range: scale * level + zero.
  struct Placing {
    double scale = 1, zero = 0;
  };
  struct Turn;

  /// Places the levels anew for those points that are nearest to each, and adds what the levels' own fit needs.
  void turn(std::size_t channel, const std::vector<double>& levels, Placing& placing, Turn& sums) const;
  [[nodiscard]] std::vector<WeightSum> by_level(std::size_t channel, const std::vector<double>& levels,
                                                const Placing& placing) const;

  std::vector<Normaliser> normalisers_;  // of the thresholds
  std::vector<WeightSum> parts_;         // [channels, kParts]
  std::vector<double> squares_;          // [channels], sum of weights times squares of points
  std::vector<double> costs_;            // [channels], what an error in units of the range counts
};

}  // namespace kvcal::calib
