// calib/model/weights.h: tensors of a memory-mapped checkpoint, checked,
// and where and in the type that the arithmetic uses.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>
#include <vector>

#include "calib/model/placement.h"
#include "formats/checkpoint.h"

namespace kvcal::calib {

/// A tensor that a model reads, as config.json says it must be.
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
};

class WeightLoader {
 public:
  /// folder: a checkpoint; placement: where load() and load_rows() put tensors, of type at::kFloat or
  /// at::kBFloat16. Reads and checks the headers only.
  WeightLoader(const std::filesystem::path& folder, const Placement& placement);

  /// By the headers alone. Throws InvalidInput naming file and tensor where it is missing, or of another
  /// shape or type than F32, F16, BF16.
  void check(const TensorSpec& spec) const;
  /// Reads the whole tensor, some rows at a time.
  /// Throws InvalidInput naming file and tensor where it holds NaN or infinity.
  void check_values(const TensorSpec& spec) const;

  /// The tensor in the compute type on the compute device: a view of the mapped file where that is the CPU
  /// and the file holds the type, else a copy. Throws InvalidInput as check() and check_values() do.
  [[nodiscard]] at::Tensor load(const TensorSpec& spec) const;
  /// As load(), for some rows of a matrix: an embedding's. Only those are checked for NaN and infinity, and
  /// only those go to the device. indices: int64, on the CPU, where the file is mapped.
  [[nodiscard]] at::Tensor load_rows(const TensorSpec& spec, const at::Tensor& indices) const;
  [[nodiscard]] bool contains(const std::string& name) const;
  [[nodiscard]] const Placement& placement() const { return placement_; }
  [[nodiscard]] at::ScalarType dtype() const { return placement_.dtype; }
  [[nodiscard]] const formats::Checkpoint& checkpoint() const { return checkpoint_; }

  /// Elements of all tensors.
  [[nodiscard]] std::int64_t parameters() const;

  /// Tells the kernel that these will be read soon, or not again. What is not there is passed over.
  void will_need(const std::vector<TensorSpec>& specs) const;
  void dont_need(const std::vector<TensorSpec>& specs) const;

 private:
  formats::Checkpoint checkpoint_;
  Placement placement_;
};

}  // namespace kvcal::calib
