// formats/safetensors.h: files of named tensors (https://github.com/huggingface/safetensors), memory-mapped.
//
// A file is: the header's length (uint64, little-endian), the header (JSON: name -> dtype, shape,
// data_offsets; optionally __metadata__, text to text), the data. The whole header is checked before any
// tensor can be touched: after the constructor every view lies inside the file, has the size its dtype and
// shape say, and shares no byte with another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "formats/dtype.h"

namespace kvcal::formats {

/// A tensor in a mapped file: valid while the SafetensorsFile or Checkpoint that gave it lives. Row-major;
/// data need not be aligned to its element.
struct TensorView {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
  std::filesystem::path file;  ///< for messages; the writer ignores it
};

/// Text to text: the optional __metadata__ of a file.
using SafetensorsMetadata = std::map<std::string, std::string>;

/// The longest header that is read, as in the reference implementation.
inline constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

/// One file. Tensors are in the order of their names (as bytes).
class SafetensorsFile {
 public:
  /// Throws SystemError where the file cannot be opened, InvalidInput naming the file, the tensor and the
  /// rule that is broken.
  explicit SafetensorsFile(const std::filesystem::path& path);

  [[nodiscard]] const std::filesystem::path& path() const { return map_.path(); }
  [[nodiscard]] std::span<const TensorView> tensors() const { return tensors_; }
  [[nodiscard]] const SafetensorsMetadata& metadata() const { return metadata_; }
  /// Null where there is none of that name.
  [[nodiscard]] const TensorView* find(std::string_view name) const;
  /// Throws InvalidInput where there is none of that name.
  [[nodiscard]] const TensorView& get(std::string_view name) const;

  /// Tells the kernel that a tensor of this file will be read soon, or not again for a while.
  void advise_will_need(const TensorView& tensor) const { map_.advise_will_need(tensor.data); }
  void advise_dont_need(const TensorView& tensor) const { map_.advise_dont_need(tensor.data); }

 private:
  base::MappedFile map_;
  std::vector<TensorView> tensors_;
  SafetensorsMetadata metadata_;
};

/// Writes a file that the reference implementation reads: wide elements first, then by name, so that every
/// tensor is aligned; tensor by tensor to a temporary name, synced, then renamed. The same input in any order
/// gives the same bytes. Throws InvalidInput for a name given twice or a size that disagrees with dtype and
/// shape, SystemError (a full disk), leaving nothing behind.
void write_safetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                       const SafetensorsMetadata& metadata = {});

}  // namespace kvcal::formats
