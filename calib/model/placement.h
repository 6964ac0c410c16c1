// calib/model/placement.h: where a model is computed, and in what type.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>
#include <c10/core/TensorOptions.h>

namespace kvcal::calib {

/// Where and in what type a model's tensors are computed: every tensor of the passes is made by it.
struct Placement {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  int threads = 1;  ///< of the CPU, on whichever device the tensors are

  [[nodiscard]] at::TensorOptions options() const { return at::TensorOptions().device(device).dtype(dtype); }
};

}  // namespace kvcal::calib
