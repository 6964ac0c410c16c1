// calib/rope.h: rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split: channel i turns
// with i + head_dim/2.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <mutex>
#include <vector>

#include "calib/model_config.h"

namespace kvcal::calib {

/// The angle per position of each of the head_dim/2 pairs, in radians, for a sequence of `tokens` (only
/// `dynamic` depends on it). linear: divided by factor. dynamic: NTK-aware theta beyond
/// original_max_positions. llama3: the long wavelengths divided by factor, with a ramp between (as
/// transformers' rope_type of the same names).
[[nodiscard]] std::vector<double> inverse_frequencies(const RopeConfig& rope, int head_dim,
                                                      std::int64_t tokens);

/// Cosines and sines of positions 0 to tokens - 1, [tokens, head_dim] float32, the second half repeating the
/// first. Angles are taken in double, so that far positions are as exact as near ones.
struct RotaryTable {
  at::Tensor cosines, sines;
};
[[nodiscard]] RotaryTable rotary_table(const RopeConfig& rope, int head_dim, std::int64_t tokens);

/// x: [tokens, heads, head_dim], any floating type; returns the same shape and type, rotated in float32.
[[nodiscard]] at::Tensor rotate(const at::Tensor& x, const RotaryTable& table);

/// The tables of one model. Kept are the longest that serves every shorter sequence, too, and the last of a
/// length that has angles of its own (`dynamic` beyond its original positions). Thread-safe.
class RotaryCache {
 public:
  RotaryCache(RopeConfig rope, int head_dim) : rope_(std::move(rope)), head_dim_(head_dim) {}
  [[nodiscard]] RotaryTable table(std::int64_t tokens);

 private:
  RopeConfig rope_;
  int head_dim_;
  std::mutex mutex_;
  RotaryTable shared_, own_;
};

}  // namespace kvcal::calib
