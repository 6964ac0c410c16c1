// calib/validate/attention_shares.h: where an attention looks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "fisher/block.h"

namespace kvcal::calib {

/// The softmax of some queries over the tokens that each sees. All heads, and of the queries as many as kQueries,
/// evenly spaced, the last among them: all would cost as much as the layer.
class AttentionShares {
 public:
  static constexpr std::int64_t kQueries = 64;

  /// keys: [tokens, kv_heads, dim], after RoPE: the inputs' own, or others in their place.
  AttentionShares(const fisher::AttentionInputs& inputs, const at::Tensor& keys);

  /// Summed over heads and queries: sum of min(a, a') over tokens, 1 where both look at the same.
  [[nodiscard]] double shared_with(const AttentionShares& other) const;
  /// How many sums that is: heads times queries.
  [[nodiscard]] std::int64_t count() const { return shares_.size(0) * shares_.size(1); }

 private:
  at::Tensor shares_;  // [heads, queries, tokens], float32
};

}  // namespace kvcal::calib
