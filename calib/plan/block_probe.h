// calib/plan/block_probe.h: a few tokens through one block of the model,
// from which a run's memory and time follow.
#pragma once

#include <cstdint>

#include "calib/model/model.h"
#include "calib/model/placement.h"

namespace kvcal::calib {

/// Bytes of tensors for one sample, linear in its tokens.
struct BytesByTokens {
  double fixed = 0;
  double per_token = 0;
  [[nodiscard]] std::int64_t at(std::int64_t tokens) const {
    return static_cast<std::int64_t>(fixed + per_token * static_cast<double>(tokens));
  }
};

/// One sample.
struct BlockProbe {
  BytesByTokens forward_bytes;   ///< input and output among them
  BytesByTokens backward_bytes;  ///< recomputation and gradients; as forward where none are wanted
  double forward_seconds_per_token = 0;
  double backward_seconds_per_token = 0;
  /// Of kAttentionTokens, beyond what the tokens themselves take; grows with the square.
  double attention_forward_seconds = 0;
  double attention_backward_seconds = 0;  ///< the same
  double product_rate = 0;  ///< floating-point operations a second in a product of the compute type
};
inline constexpr std::int64_t kAttentionTokens = 512;

/// Loads a block and runs some hundred tokens through it. Throws what loading it throws.
/// Bytes are those of a sample with placement.threads threads, seconds those of one.
[[nodiscard]] BlockProbe probe_block(const Model& model, int layer, const Placement& placement,
                                     bool with_gradients);

}  // namespace kvcal::calib
