// calib/linear.h: a product with fixed weights, through the fastest kernel that libtorch has for this CPU.
#pragma once

#include <ATen/core/Tensor.h>

namespace kvcal::calib {

/// x [tokens, in] times weight [out, in] transposed, plus bias [out] where defined: [tokens, out].
/// Differentiable with respect to x alone. float32 goes through oneDNN where the CPU is not Intel's: MKL has
/// its best kernels for Intel's only. Which kernel it is depends on the CPU and nothing else, so that results
/// do, too.
[[nodiscard]] at::Tensor fixed_linear(const at::Tensor& x, const at::Tensor& weight,
                                      const at::Tensor& bias = {});

}  // namespace kvcal::calib
