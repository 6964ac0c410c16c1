// calib/weights.h: tensors of a memory-mapped checkpoint, checked and in the type that the arithmetic uses.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <initializer_list>
#include <string>
#include <vector>

#include "formats/checkpoint.h"

namespace kvcal::calib {

class WeightLoader {
 public:
  /// folder: a checkpoint; dtype: at::kFloat or at::kBFloat16. Reads and checks the headers only.
  WeightLoader(const std::filesystem::path& folder, at::ScalarType dtype);

  /// The tensor in the compute type: a view of the mapped file where that holds it so, else a copy. Throws
  /// InvalidInput naming file and tensor where it is missing, of another shape or type than F32, F16, BF16,
  /// or holds NaN or infinity.
  [[nodiscard]] at::Tensor load(const std::string& name, std::initializer_list<std::int64_t> shape) const;
  /// As load(), for some rows of a matrix [rows, columns]: an embedding's.
  [[nodiscard]] at::Tensor load_rows(const std::string& name, std::int64_t rows, std::int64_t columns,
                                     const at::Tensor& indices) const;
  [[nodiscard]] bool contains(const std::string& name) const;
  [[nodiscard]] at::ScalarType dtype() const { return dtype_; }
  [[nodiscard]] const formats::Checkpoint& checkpoint() const { return checkpoint_; }

  /// Elements of all tensors.
  [[nodiscard]] std::int64_t parameters() const;

  /// Tells the kernel that these will be read soon, or not again. Names that are not there are passed over.
  void will_need(const std::vector<std::string>& names) const;
  void dont_need(const std::vector<std::string>& names) const;

 private:
  formats::Checkpoint checkpoint_;
  at::ScalarType dtype_;
};

}  // namespace kvcal::calib
