// formats/checkpoint.h: the weights of a model folder: one model.safetensors, or shards with
// model.safetensors.index.json.
//
// Where both lie there, model.safetensors is read, as transformers does. Every shard's header is checked when
// the folder is opened; the weights themselves stay on disk until they are touched.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/safetensors.h"

namespace kvcal::formats {

class Checkpoint {
 public:
  /// Throws InvalidInput: no safetensors here (and then, for .bin, .pth and .gguf files, the conversion that
  /// helps), a missing or damaged shard, an index that disagrees with its shards, a tensor in two shards, a
  /// shard name that leaves the folder.
  explicit Checkpoint(const std::filesystem::path& folder);

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  [[nodiscard]] std::span<const SafetensorsFile> files() const { return files_; }
  /// In the order of their names (as bytes), over all shards.
  [[nodiscard]] std::span<const TensorView> tensors() const { return tensors_; }
  /// Null where there is none of that name.
  [[nodiscard]] const TensorView* find(std::string_view name) const;
  /// Throws InvalidInput naming the tensor and the folder where there is none of that name.
  [[nodiscard]] const TensorView& get(std::string_view name) const;

  /// SHA-256 over all tensors in name order: the same for any sharding. For each: the name, the dtype's name
  /// (each preceded by its length), the number of dimensions, each extent, the size in bytes (all uint64,
  /// little-endian), then the first and the last 32 KiB of the data (or all of it, twice, where it is
  /// shorter).
  [[nodiscard]] std::string weights_sha256() const;

  void advise_will_need(const TensorView& tensor) const;
  void advise_dont_need(const TensorView& tensor) const;

 private:
  void open_shards(const std::filesystem::path& index);

  std::filesystem::path folder_;
  std::vector<SafetensorsFile> files_;
  std::vector<TensorView> tensors_;
};

}  // namespace kvcal::formats
