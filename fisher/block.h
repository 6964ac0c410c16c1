// fisher/block.h: what a model is to the engine: a stack of differentiable blocks and a head. calib/
// implements them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace kvcal::fisher {

/// The tensors inside a block that sensitivities are wanted for, as nodes of its graph.
struct Taps {
  at::Tensor keys;    ///< [tokens, kv_heads * key_dim], before RoPE, after a key norm where the model has one
  at::Tensor values;  ///< [tokens, kv_heads * value_dim]
};

/// One layer of a model with its weights in memory. Weights never require gradients.
class Block {
 public:
  virtual ~Block() = default;
  /// hidden: [tokens, hidden_size], one sample, positions from 0. Returns the same shape. Where `taps` is not
  /// null it receives the block's keys and values; all other arithmetic goes through them, so that gradients
  /// reach them.
  [[nodiscard]] virtual at::Tensor forward(const at::Tensor& hidden, Taps* taps) const = 0;
};

/// The end of a model: final norm and output projection.
class Head {
 public:
  virtual ~Head() = default;
  /// hidden: [tokens, hidden_size]. Returns float32 logits [tokens, vocabulary].
  [[nodiscard]] virtual at::Tensor logits(const at::Tensor& hidden) const = 0;
};

}  // namespace kvcal::fisher
