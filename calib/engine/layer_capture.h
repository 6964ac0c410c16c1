// calib/engine/layer_capture.h: what the backward pass hands to the fit: what one layer caches, with gradients.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "formats/codebook.h"

namespace kvcal::calib {

/// A row-major float matrix that owns its memory, uninitialised when made.
class Matrix {
 public:
  Matrix() = default;
  Matrix(std::int64_t rows, std::int64_t columns)
      : rows_(rows),
        columns_(columns),
        data_(std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(rows * columns))) {}
  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t columns() const { return columns_; }
  [[nodiscard]] bool empty() const { return data_ == nullptr; }
  [[nodiscard]] std::span<float> row(std::int64_t index) {
    return {data_.get() + index * columns_, static_cast<std::size_t>(columns_)};
  }
  [[nodiscard]] std::span<const float> row(std::int64_t index) const {
    return {data_.get() + index * columns_, static_cast<std::size_t>(columns_)};
  }
  [[nodiscard]] std::int64_t bytes() const { return rows_ * columns_ * std::int64_t{sizeof(float)}; }

 private:
  std::int64_t rows_ = 0;
  std::int64_t columns_ = 0;
  std::unique_ptr<float[]> data_;
};

/// One cached tensor of a layer. A row is a token; the sinks of each sample and padding are left out, samples
/// follow each other.
struct CapturedTensor {
  formats::CachedTensor tensor;
  /// [rows, channels], as it is cached: keys before RoPE, values.
  Matrix x;
  /// [rows, channels]: dL/dx, not squared (squares of small ones would underflow); empty: every weight is 1.
  Matrix gradients;
};

struct LayerCapture {
  int layer = 0;
  std::vector<CapturedTensor> tensors;  ///< in the order of Model::cache()
};

/// Some consecutive rows of a captured tensor.
struct CapturedRows {
  const CapturedTensor* tensor = nullptr;
  std::int64_t begin = 0, end = 0;

  explicit CapturedRows(const CapturedTensor& whole) : tensor(&whole), end(whole.x.rows()) {}
  CapturedRows(const CapturedTensor& whole, std::int64_t first, std::int64_t last)
      : tensor(&whole), begin(first), end(last) {}
  [[nodiscard]] std::int64_t rows() const { return end - begin; }
  [[nodiscard]] std::int64_t channels() const { return tensor->x.columns(); }
  [[nodiscard]] std::span<const float> x(std::int64_t row) const { return tensor->x.row(begin + row); }
  [[nodiscard]] std::span<const float> gradients(std::int64_t row) const {
    return tensor->gradients.row(begin + row);
  }
  [[nodiscard]] bool has_gradients() const { return !tensor->gradients.empty(); }
};

}  // namespace kvcal::calib
