// calib/model/parts/linear.h: a product with fixed weights, through the fastest kernel that libtorch has for
// where the tensors are.
#pragma once

#include <ATen/core/Tensor.h>

namespace kvcal::calib {

/// x [tokens, in] times weight [out, in] transposed, plus bias [out] where defined: [tokens, out].
/// Differentiable with respect to x alone. float32 goes through oneDNN where the CPU is not Intel's: MKL has
/// its best kernels for Intel's only. Which kernel it is depends on the CPU and the tensors' device and
/// nothing else, so that results do, too.
[[nodiscard]] at::Tensor fixed_linear(const at::Tensor& x, const at::Tensor& weight,
                                      const at::Tensor& bias = {});

/// The same with its weights held (torch.nn.Linear): x [tokens, in] -> [tokens, out].
struct Linear {
  at::Tensor weight;  ///< [out, in]
  at::Tensor bias;    ///< [out], or undefined
  [[nodiscard]] at::Tensor operator()(const at::Tensor& x) const { return fixed_linear(x, weight, bias); }
};

}  // namespace kvcal::calib
