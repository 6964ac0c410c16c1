// calib/model/parts/gated_mlp.h: the feed-forward layer whose gate is an activation.
#pragma once

#include <ATen/core/Tensor.h>

#include "calib/model/parts/activation.h"
#include "calib/model/parts/linear.h"

namespace kvcal::calib {

/// down(activation(gate(x)) * up(x)): GLU variants (Shazeer 2020, arXiv 2002.05202), transformers' LlamaMLP.
struct GatedMlp {
  Linear gate, up;  ///< [intermediate_size, hidden_size]
  Linear down;      ///< [hidden_size, intermediate_size]
  Activation activation = Activation::silu;
  /// x: [tokens, hidden_size]. Returns the same shape and type.
  [[nodiscard]] at::Tensor operator()(const at::Tensor& x) const;
};

}  // namespace kvcal::calib
