// formats/npy.h: NumPy's .npy arrays (numpy.lib.format, versions 1 to 3), memory-mapped.
//
// Read: little-endian, C order, elements bool, int8 to int64, uint8 to uint64, float16, float32, float64.
// Everything else is refused by name: Fortran order, big-endian, objects (pickles can run code), structured
// and complex elements, a file that is shorter or longer than its header says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "base/file.h"
#include "formats/dtype.h"

namespace kvcal::formats {

/// One array. data() is row-major and need not be aligned to its elements.
class NpyFile {
 public:
  /// Throws SystemError where the file cannot be opened, InvalidInput naming the file and what is wrong.
  explicit NpyFile(const std::filesystem::path& path);

  [[nodiscard]] const std::filesystem::path& path() const { return map_.path(); }
  [[nodiscard]] Dtype dtype() const { return dtype_; }
  /// Empty for a scalar.
  [[nodiscard]] std::span<const std::int64_t> shape() const { return shape_; }
  [[nodiscard]] std::int64_t size() const { return size_; }
  [[nodiscard]] std::span<const std::byte> data() const { return data_; }

  /// All elements as float: from float16, float32 and float64. Throws InvalidInput for another dtype.
  [[nodiscard]] std::vector<float> floats() const;
  /// All elements as int64: from any integer type.
  /// Throws InvalidInput for another dtype, and for a uint64 beyond int64.
  [[nodiscard]] std::vector<std::int64_t> integers() const;

 private:
  base::MappedFile map_;
  Dtype dtype_ = Dtype::F32;
  std::vector<std::int64_t> shape_;
  std::int64_t size_ = 0;
  std::span<const std::byte> data_;
};

/// Writes an array that numpy.load reads (version 1.0, C order), whole or not at all. `shape` must hold
/// values.size() elements, else InvalidInput. Throws SystemError (a full disk), leaving nothing behind.
void write_npy(const std::filesystem::path& path, std::span<const float> values,
               std::span<const std::int64_t> shape);
void write_npy(const std::filesystem::path& path, std::span<const double> values,
               std::span<const std::int64_t> shape);
void write_npy(const std::filesystem::path& path, std::span<const std::int32_t> values,
               std::span<const std::int64_t> shape);
void write_npy(const std::filesystem::path& path, std::span<const std::int64_t> values,
               std::span<const std::int64_t> shape);

}  // namespace kvcal::formats
