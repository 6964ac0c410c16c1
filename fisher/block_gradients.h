// fisher/block_gradients.h: one block's part of the backward pass, by recomputation.
#pragma once

#include "fisher/block.h"

namespace kvcal::fisher {

/// A block's keys and values, and the gradients of the loss with respect to them. No graph is attached.
struct BlockGradients {
  at::Tensor keys, values;                    ///< as Taps
  at::Tensor key_gradients, value_gradients;  ///< the same shapes
  at::Tensor input_gradient;                  ///< [tokens, hidden_size]; undefined where it was not asked for
};

/// Recomputes `block` at `input` [tokens, hidden_size] and takes the gradients of <output_gradient,
/// block(input)> with respect to keys, values and, where `with_input`, the input: with output_gradient =
/// dL/d(output) these are dL/d(each), KVQuant (Hooper et al. 2024) section 3.3. Gradients are never taken
/// with respect to weights. Throws base::Error where the block shows no keys or values.
[[nodiscard]] BlockGradients block_gradients(const Block& block, const at::Tensor& input,
                                             const at::Tensor& output_gradient, bool with_input);

/// Keys and values alone: a forward without a graph; the gradients stay undefined.
[[nodiscard]] BlockGradients block_taps(const Block& block, const at::Tensor& input);

}  // namespace kvcal::fisher
