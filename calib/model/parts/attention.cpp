#include "calib/model/parts/attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "calib/model/parts/blocked_attention.h"

namespace kvcal::calib {
namespace {

// Queries that share one mask where a window cuts:
// the mask is kQueryBlock x (kQueryBlock + window), shared by all heads.
constexpr std::int64_t kQueryBlock = 256;

// [tokens, kv_heads, dim] -> [1, heads, tokens, dim];
// autograd sums the gradients of a kv head over its query heads.
at::Tensor expand_heads(const at::Tensor& x, std::int64_t heads) {
  const std::int64_t tokens = x.size(0);
  const std::int64_t kv_heads = x.size(1);
  const std::int64_t dim = x.size(2);
  at::Tensor by_head = x.transpose(0, 1);
  if (kv_heads != heads) {
    by_head =
        by_head.unsqueeze(1).expand({kv_heads, heads / kv_heads, tokens, dim}).reshape({heads, tokens, dim});
  }
  return by_head.unsqueeze(0);
}

// true where the query at begin + i may read the key at first + j.
at::Tensor window_mask(std::int64_t first, std::int64_t begin, std::int64_t end, std::int64_t window,
                       at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor query = at::arange(begin, end, options).unsqueeze(1);
  const at::Tensor key = at::arange(first, end, options).unsqueeze(0);
  return key.le(query).logical_and_(key.gt(query - window));
}

// The last token's alone. The query heads of a kv head stand where tokens do: none of the keys is copied.
at::Tensor newest_attention(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                            std::int64_t window) {
  const std::int64_t kv_heads = keys.size(1);
  const std::int64_t first = window > 0 ? std::max<std::int64_t>(0, keys.size(0) - window) : 0;
  const at::Tensor q = query.reshape({1, kv_heads, query.size(1) / kv_heads, query.size(2)});
  const auto by_head = [&](const at::Tensor& x) { return x.slice(0, first).transpose(0, 1).unsqueeze(0); };
  return at::scaled_dot_product_attention(q, by_head(keys), by_head(values))
      .reshape({1, query.size(1) * values.size(2)});
}

}  // namespace

at::Tensor causal_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                            std::int64_t window) {
  if (queries.size(0) != keys.size(0)) {
    if (queries.size(0) != 1)
      throw base::Error(
          base::concat(queries.size(0), " queries of ", keys.size(0), " tokens; expected 1 or all"));
    return newest_attention(queries, keys, values, window);
  }
  if (blocked_attention_serves(queries, values)) return blocked_attention(queries, keys, values, window);
  const std::int64_t tokens = queries.size(0);
  const std::int64_t heads = queries.size(1);
  const at::Tensor q = queries.transpose(0, 1).unsqueeze(0);
  const at::Tensor k = expand_heads(keys, heads);
  const at::Tensor v = expand_heads(values, heads);
  at::Tensor mixed;
  if (window <= 0 || window >= tokens) {
    mixed = at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true);
  } else {
    std::vector<at::Tensor> blocks;
    for (std::int64_t begin = 0; begin < tokens; begin += kQueryBlock) {
      const std::int64_t end = std::min(tokens, begin + kQueryBlock);
      const std::int64_t first = std::max<std::int64_t>(0, begin - window + 1);
      blocks.push_back(at::scaled_dot_product_attention(q.slice(2, begin, end), k.slice(2, first, end),
                                                        v.slice(2, first, end),
                                                        window_mask(first, begin, end, window, q.device())));
    }
    mixed = at::cat(blocks, 2);
  }
  return mixed.squeeze(0).transpose(0, 1).reshape({tokens, heads * values.size(2)});
}

}  // namespace kvcal::calib
