// calib/model/parts/blocked_attention.h: causal attention in blocks of queries and keys,
// by oneDNN's block products.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace kvcal::calib {

/// Whether blocked_attention works on tensors like these, and is the fastest that there is for them: on a
/// CPU with AVX-512 that is not Intel's (there libtorch's own attention finds faster products, elsewhere
/// none), in float32, or in bfloat16 where the CPU multiplies it and dimensions are even.
[[nodiscard]] bool blocked_attention_serves(const at::Tensor& queries, const at::Tensor& values);

/// causal_attention (calib/model/parts/attention.h), with the same arguments and result, differentiable once.
/// Products are of the tensors' type and summed in float32; logits, their softmax and its sums are float32.
/// As in FlashAttention-2 (Dao, 2023, algorithms 1 and 2), no matrix of tokens x tokens is ever held: memory
/// grows with the tokens. Beside inputs and results each thread holds one head's keys and values again, in the
/// gradient queries and slopes twice, and float32 gradients of every query head exist together. The result
/// does not depend on the number of threads.
[[nodiscard]] at::Tensor blocked_attention(const at::Tensor& queries, const at::Tensor& keys,
                                           const at::Tensor& values, std::int64_t window);

}  // namespace kvcal::calib
