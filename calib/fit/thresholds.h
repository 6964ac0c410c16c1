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

/// Which numbers of a tensor share a pair of thresholds.
struct PairLayout {
  formats::ThresholdScope scope = formats::ThresholdScope::channel;
  std::int64_t channels = 0;
  /// Pairs of a token where they are a token's, each over as many consecutive channels.
  int per_token = 1;

  [[nodiscard]] bool by_channel() const { return scope == formats::ThresholdScope::channel; }
  [[nodiscard]] std::int64_t count(std::int64_t tokens) const {
    return by_channel() ? channels : tokens * per_token;
  }
  /// The tokens, of so many, and the channels that a pair is of.
  [[nodiscard]] Range tokens_of(std::int64_t pair, std::int64_t tokens) const {
    return by_channel() ? Range{0, tokens} : Range{pair / per_token, pair / per_token + 1};
  }
  [[nodiscard]] Range channels_of(std::int64_t pair) const {
    const std::int64_t width = channels / per_token;
    const std::int64_t first = pair % per_token * width;
    return by_channel() ? Range{pair, pair + 1} : Range{first, first + width};
  }
};

/// All pairs, in their order, for each fraction. The numbers of a pair are copied, never the whole matrix.
[[nodiscard]] std::vector<Thresholds> find_thresholds(const CapturedTokens& x, const PairLayout& layout,
                                                      std::span<const double> fractions, int threads);

/// Zero and range of a pair of thresholds: x' = (x - zero) / range, in [-1, 1] between them. range is 0 where
/// the pair is equal or its range rounds to 0 in fp16, in which it is stored: such a channel is constant,
/// dequantises to zero and is left out of the fit.
struct Normaliser {
  double zero = 0;
  double range = 0;
};
[[nodiscard]] Normaliser normaliser(float lower, float upper);

/// Whether both are finite in fp16, in which they are stored.
[[nodiscard]] bool is_storable(const Normaliser& normal);

}  // namespace kvcal::calib
