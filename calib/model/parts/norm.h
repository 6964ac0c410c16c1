// calib/model/parts/norm.h: root mean square layer normalisation.
#pragma once

#include <ATen/core/Tensor.h>

namespace kvcal::calib {

/// x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (Zhang and Sennrich 2019, arXiv
/// 1910.07467); operation for operation transformers' LlamaRMSNorm: in float32, rounded to x's type before
/// the weight.
struct RmsNorm {
  at::Tensor weight;  ///< [dim]
  double epsilon = 1e-6;
  /// x: [..., dim]. Returns the same shape and type.
  [[nodiscard]] at::Tensor operator()(const at::Tensor& x) const;
};

}  // namespace kvcal::calib
