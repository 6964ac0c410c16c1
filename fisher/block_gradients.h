// fisher/block_gradients.h: one block's part of the backward pass, by recomputation.
#pragma once

#include <vector>

#include "fisher/block.h"

namespace kvcal::fisher {

/// What a block caches, and the gradients of the loss with respect to it. No graph is attached.
struct BlockGradients {
  std::vector<at::Tensor> cached;     ///< each [tokens, heads * dim], in the order of the layer's list
  std::vector<at::Tensor> rotated;    ///< the same after RoPE; undefined where a tensor is not rotated
  std::vector<at::Tensor> gradients;  ///< the same shapes; empty where they were not asked for
  at::Tensor input_gradient;          ///< [tokens, hidden_size]; undefined where it was not asked for
};

/// Recomputes `block` at `input` [tokens, hidden_size] and takes the gradients of <output_gradient,
/// block(input)> with respect to the `cached` tensors of the layer and, where `with_input`, the input: with
/// output_gradient = dL/d(output) these are dL/d(each), KVQuant (Hooper et al. 2024) section 3.3. Gradients
/// are never taken with respect to weights. Throws base::Error where the block shows other tensors.
[[nodiscard]] BlockGradients block_gradients(const Block& block, std::size_t cached, const at::Tensor& input,
                                             const at::Tensor& output_gradient, bool with_input);

/// The `cached` tensors alone: a forward without a graph.
[[nodiscard]] BlockGradients block_cache(const Block& block, std::size_t cached, const at::Tensor& input);

}  // namespace kvcal::fisher
