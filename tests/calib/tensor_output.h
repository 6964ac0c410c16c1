// tests/calib/tensor_output.h: what the programs of the Python tests compute, as a safetensors file.
#pragma once

#include <ATen/ATen.h>

#include <list>
#include <span>
#include <string>
#include <vector>

#include "formats/safetensors.h"

namespace kvcal::testing {

/// Tensors to be written, in float32; owns copies of them until then.
class TensorOutput {
 public:
  void add(const std::string& name, const at::Tensor& value) {
    const at::Tensor& tensor = kept_.emplace_back(value.to(at::kFloat).clone(at::MemoryFormat::Contiguous));
    views_.push_back(
        {name,
         formats::Dtype::F32,
         tensor.sizes().vec(),
         std::as_bytes(std::span(tensor.const_data_ptr<float>(), static_cast<std::size_t>(tensor.numel()))),
         {}});
  }
  /// Throws InvalidInput where a name was added twice.
  void write(const std::string& path) const { formats::write_safetensors(path, views_); }

 private:
  std::list<at::Tensor> kept_;
  std::vector<formats::TensorView> views_;
};

}  // namespace kvcal::testing
