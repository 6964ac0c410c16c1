#include "calib/validate/attention_shares.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace kvcal::calib {

AttentionShares::AttentionShares(const fisher::AttentionInputs& inputs, const at::Tensor& keys) {
  const std::int64_t tokens = keys.size(0), kv_heads = keys.size(1), dim = keys.size(2);
  const std::int64_t heads = inputs.queries.size(1);
  const std::int64_t count = std::min(kQueries, tokens);
  const auto options = at::TensorOptions().dtype(at::kLong).device(keys.device());
  const at::Tensor places = at::arange(1, count + 1, options).mul(tokens).div(count, "floor").sub(1);
  // The query heads of a kv head stand side by side: [kv_heads, heads / kv_heads * queries, dim].
  const at::Tensor q = inputs.queries.index_select(0, places)
                           .to(at::kFloat)
                           .view({count, kv_heads, heads / kv_heads, dim})
                           .permute({1, 2, 0, 3})
                           .reshape({kv_heads, heads / kv_heads * count, dim});
  const at::Tensor k = keys.to(at::kFloat).permute({1, 2, 0});
  const at::Tensor logits =
      at::bmm(q, k).mul_(1.0 / std::sqrt(static_cast<double>(dim))).view({heads, count, tokens});
  const at::Tensor key = at::arange(tokens, options);
  at::Tensor hidden = key.gt(places.unsqueeze(1));
  if (inputs.window > 0) hidden = hidden.logical_or(key.le(places.unsqueeze(1) - inputs.window));
  shares_ = logits.masked_fill(hidden, -std::numeric_limits<float>::infinity()).softmax(-1);
}

double AttentionShares::shared_with(const AttentionShares& other) const {
  return at::minimum(shares_, other.shares_).sum(at::kDouble).item<double>();
}

}  // namespace kvcal::calib
