#include "calib/model/weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>

#include "base/checked.h"
#include "base/error.h"

namespace kvcal::calib {
namespace {

// Rows of a matrix that are looked at together: some megabytes of an embedding.
constexpr std::int64_t kRowsAtOnce = 4096;

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

at::ScalarType scalar_type(const formats::TensorView& tensor) {
  switch (tensor.dtype) {
    case formats::Dtype::F32:
      return at::kFloat;
    case formats::Dtype::F16:
      return at::kHalf;
    case formats::Dtype::BF16:
      return at::kBFloat16;
    default:
      throw base::InvalidInput(base::concat(
          tensor.file.string(), ": tensor ", tensor.name, " is ", formats::dtype_name(tensor.dtype),
          "; weights must be F32, F16 or BF16: dequantise the checkpoint first"));
  }
}

// The mapped bytes as a tensor, without a copy unless they are not aligned to their element.
at::Tensor view_tensor(const formats::TensorView& tensor) {
  const at::ScalarType type = scalar_type(tensor);
  auto* data = const_cast<std::byte*>(tensor.data.data());
  if (reinterpret_cast<std::uintptr_t>(data) % at::elementSize(type) == 0) {
    return at::from_blob(data, tensor.shape, type);
  }
  at::Tensor copy = at::empty(tensor.shape, type);
  std::copy(tensor.data.begin(), tensor.data.end(), static_cast<std::byte*>(copy.mutable_data_ptr()));
  return copy;
}

void check_shape(const formats::TensorView& tensor, std::span<const std::int64_t> shape) {
  if (std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) return;
  throw base::InvalidInput(base::concat(tensor.file.string(), ": tensor ", tensor.name, " has shape ",
                                        shape_text(tensor.shape), ", expected ", shape_text(shape),
                                        " by config.json"));
}

void check_finite(const formats::TensorView& tensor, const at::Tensor& values) {
  if (values.numel() == 0) return;
  const auto [low, high] = at::aminmax(values);
  if (at::isfinite(at::stack({low, high})).all().item<bool>()) return;
  throw base::InvalidInput(
      base::concat(tensor.file.string(), ": tensor ", tensor.name,
                   " holds NaN or infinity; the checkpoint is damaged, download it again"));
}

}  // namespace

WeightLoader::WeightLoader(const std::filesystem::path& folder, const Placement& placement)
    : checkpoint_(folder), placement_(placement) {}

void WeightLoader::check(const TensorSpec& spec) const {
  const formats::TensorView& tensor = checkpoint_.get(spec.name);
  check_shape(tensor, spec.shape);
  (void)scalar_type(tensor);
}

void WeightLoader::check_values(const TensorSpec& spec) const {
  check(spec);
  const formats::TensorView& tensor = checkpoint_.get(spec.name);
  const at::Tensor values = view_tensor(tensor);
  const std::int64_t rows = values.dim() > 0 ? values.size(0) : 0;
  for (std::int64_t first = 0; first < rows; first += kRowsAtOnce)
    check_finite(tensor, values.slice(0, first, std::min(rows, first + kRowsAtOnce)));
  checkpoint_.advise_dont_need(tensor);
}

at::Tensor WeightLoader::load(const TensorSpec& spec) const {
  check(spec);
  const formats::TensorView& tensor = checkpoint_.get(spec.name);
  const at::Tensor stored = view_tensor(tensor);
  check_finite(tensor, stored);
  if (stored.scalar_type() == placement_.dtype && placement_.device.is_cpu()) return stored;
  const at::Tensor converted = stored.to(placement_.device, placement_.dtype);
  // The copy is what is used from here on: the file's pages need not stay beside it.
  checkpoint_.advise_dont_need(tensor);
  return converted;
}

at::Tensor WeightLoader::load_rows(const TensorSpec& spec, const at::Tensor& indices) const {
  check(spec);
  const formats::TensorView& tensor = checkpoint_.get(spec.name);
  const at::Tensor picked = view_tensor(tensor).index_select(0, indices);
  check_finite(tensor, picked);
  return picked.to(placement_.device, placement_.dtype);
}

bool WeightLoader::contains(const std::string& name) const {
  return checkpoint_.find(name) != nullptr;
}

std::int64_t WeightLoader::parameters() const {
  std::int64_t total = 0;
  for (const formats::TensorView& tensor : checkpoint_.tensors()) {
    total += base::element_count(tensor.shape, tensor.name);
  }
  return total;
}

void WeightLoader::will_need(const std::vector<TensorSpec>& specs) const {
  for (const TensorSpec& spec : specs) {
    if (const auto* tensor = checkpoint_.find(spec.name)) checkpoint_.advise_will_need(*tensor);
  }
}

void WeightLoader::dont_need(const std::vector<TensorSpec>& specs) const {
  for (const TensorSpec& spec : specs) {
    if (const auto* tensor = checkpoint_.find(spec.name)) checkpoint_.advise_dont_need(*tensor);
  }
}

}  // namespace kvcal::calib
