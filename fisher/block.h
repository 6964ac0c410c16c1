// fisher/block.h: what a model is to the engine: a stack of differentiable blocks and a head.
// calib/ implements them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace kvcal::fisher {

/// Where on its way a cached tensor is shown.
enum class CachePoint {
  cached,   ///< as it is cached: keys before RoPE (after a key norm where the model has one), values
  rotated,  ///< after RoPE, as attention reads it; tensors that are not rotated are not shown here
};

/// What an attention multiplies.
struct AttentionInputs {
  std::size_t key = 0;      ///< the tensor whose tokens it chooses among
  at::Tensor queries;       ///< [tokens, heads, dim], after RoPE; head h reads kv head h / (heads / kv_heads)
  at::Tensor keys;          ///< [tokens, kv_heads, dim], after RoPE
  std::int64_t window = 0;  ///< a token sees itself and the window - 1 before it; 0: all before it
  /// Keys as they are cached, [tokens, kv_heads * dim], to `keys` of them.
  std::function<at::Tensor(const at::Tensor&)> rotate;
};

/// Is shown what a block caches, and may replace it.
class CacheHook {
 public:
  virtual ~CacheHook() = default;
  /// tensor: its place in the list of what the layer caches; x: [tokens, heads * dim], a node of the block's
  /// graph. Returns x, or another tensor of the same type and channels: all arithmetic of the block goes on with
  /// what is returned, so that gradients reach it. More tokens than x has, the same for all that are shown as
  /// cached, are those before x: the block's own tokens then follow them, and x is one token.
  [[nodiscard]] virtual at::Tensor show(std::size_t tensor, CachePoint point, const at::Tensor& x) = 0;
  /// After all of a layer's tensors were shown, by blocks whose attention chooses among keys.
  virtual void attends(const AttentionInputs& /*inputs*/) {}
};

/// One layer of a model with its weights in memory. Weights never require gradients.
class Block {
 public:
  virtual ~Block() = default;
  /// hidden: [tokens, hidden_size], one sample, positions from 0, or after those that the hook puts before it.
  /// Returns the same shape. hook: shown each cached tensor once at each of its points; null: none.
  [[nodiscard]] virtual at::Tensor forward(const at::Tensor& hidden, CacheHook* hook) const = 0;
};

/// The end of a model: final norm and output projection.
class Head {
 public:
  virtual ~Head() = default;
  /// hidden: [tokens, hidden_size]. Returns float32 logits [tokens, vocabulary].
  [[nodiscard]] virtual at::Tensor logits(const at::Tensor& hidden) const = 0;
};

}  // namespace kvcal::fisher
