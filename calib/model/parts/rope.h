// calib/model/parts/rope.h: rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split: channel
// i turns with i + head_dim/2.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "calib/model/model_config.h"

namespace kvcal::calib {

/// How frequencies are scaled for contexts longer than the first training's; names as in transformers.
enum class RopeType { standard, linear, dynamic, llama3 };

/// A rotary embedding. The fields that its type does not use keep their defaults.
struct RopeConfig {
  RopeType type = RopeType::standard;
  double theta = 10000;
  double factor = 1;            ///< linear, dynamic, llama3
  double low_freq_factor = 1;   ///< llama3
  double high_freq_factor = 4;  ///< llama3
  /// dynamic: where stretching begins; llama3: the length of the first training.
  std::int64_t original_max_positions = 0;

  /// The fields that the type uses; `type` is default, linear, dynamic or llama3.
  [[nodiscard]] nlohmann::json fields() const;
  /// The same as canonical JSON: the codebook's `rope`.
  [[nodiscard]] std::string to_json() const;
};

/// rope_theta and rope_scaling, or rope_parameters (transformers 5), of a config. Throws InvalidInput for a
/// type that is not known, naming it.
[[nodiscard]] RopeConfig read_rope_config(const ConfigReader& config, std::int64_t max_positions);

/// The angle per position of each of the head_dim/2 pairs, in radians, for a sequence of `tokens` (only
/// `dynamic` depends on it). linear: divided by factor. dynamic: NTK-aware theta beyond
/// original_max_positions. llama3: the long wavelengths divided by factor, with a ramp between (as
/// transformers' rope_type of the same names).
[[nodiscard]] std::vector<double> inverse_frequencies(const RopeConfig& rope, int head_dim,
                                                      std::int64_t tokens);

/// Cosines and sines of positions 0 to tokens - 1, [tokens, head_dim] float32, the second half repeating the
/// first, on the CPU. Angles are taken in double, so that far positions are as exact as near ones.
struct RotaryTable {
  at::Tensor cosines, sines;
};
[[nodiscard]] RotaryTable rotary_table(const RopeConfig& rope, int head_dim, std::int64_t tokens);

/// x: [tokens, heads, head_dim], any floating type, on the table's device; returns the same shape and type,
/// rotated in float32.
[[nodiscard]] at::Tensor rotate(const at::Tensor& x, const RotaryTable& table);

/// The tables of one rotary embedding, on the device given. Kept are the longest that serves every shorter
/// sequence, too, and the last of a length that has angles of its own (`dynamic` beyond its original
/// positions). Thread-safe.
class RotaryCache {
 public:
  RotaryCache(RopeConfig rope, int head_dim, at::Device device)
      : rope_(rope), head_dim_(head_dim), device_(device) {}
  [[nodiscard]] RotaryTable table(std::int64_t tokens);

 private:
  [[nodiscard]] RotaryTable make_table(std::int64_t tokens) const;

  RopeConfig rope_;
  int head_dim_;
  at::Device device_;
  std::mutex mutex_;
  RotaryTable shared_, own_;
};

}  // namespace kvcal::calib
