// calib/model/parts/attention.h: causal attention of one sample,
// by the fastest kernel for it: ours or libtorch's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace kvcal::calib {

/// queries: [tokens, heads, key_dim]; keys: [tokens, kv_heads, key_dim]; values: [tokens, kv_heads,
/// value_dim], heads a multiple of kv_heads: query head h reads kv head h / (heads / kv_heads). Logits are
/// scaled by 1/sqrt(key_dim). window: a token sees itself and the window - 1 before it; 0: all before it. One
/// query with more keys is that of their last token. Throws base::Error for other numbers of queries.
/// Returns [tokens, heads * value_dim], tokens being those of the queries. Memory grows with tokens, not with its square: a window is worked on
/// in blocks of queries.
[[nodiscard]] at::Tensor causal_attention(const at::Tensor& queries, const at::Tensor& keys,
                                          const at::Tensor& values, std::int64_t window);

}  // namespace kvcal::calib
