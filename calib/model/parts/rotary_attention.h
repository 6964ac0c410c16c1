// calib/model/parts/rotary_attention.h: grouped-query attention with rotary positions, from the normed hidden
// state to the output projection.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "calib/model/model_config.h"
#include "calib/model/parts/linear.h"
#include "calib/model/parts/rope.h"
#include "fisher/block.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// Attention whose query heads share keys and values in groups (Ainslie et al. 2023, arXiv 2305.13245), with
/// rotary positions; transformers' LlamaAttention. It caches key (tensor 0) and value (tensor 1).
struct RotaryAttention {
  Linear queries;  ///< [num_attention_heads * head_dim, hidden_size]
  Linear keys;     ///< [num_kv_heads * head_dim, hidden_size]
  Linear values;   ///< [num_kv_heads * value_dim, hidden_size]
  Linear output;   ///< [hidden_size, num_attention_heads * value_dim]
  LayerConfig layer;
  std::shared_ptr<RotaryCache> rotary;

  /// x: [tokens, hidden_size], positions from 0 or, one token, after those that the hook puts before it. Returns the same shape and type. hook: shown keys and values
  /// as they are cached and keys once more when rotated, each [tokens, num_kv_heads * dim]; null: none.
  [[nodiscard]] at::Tensor forward(const at::Tensor& x, fisher::CacheHook* hook) const;

  /// What forward() shows, in its order: key, with thresholds per channel, and value, with thresholds per
  /// token (KVQuant, Hooper et al. 2024, section 3.1).
  [[nodiscard]] static std::vector<formats::CachedTensor> cache(const LayerConfig& config);
};

}  // namespace kvcal::calib
