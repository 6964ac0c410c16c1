// calib/engine/activation_store.h: hidden states, or their gradients, of all samples by layer:
// files, with a cache in memory.
//
// A file holds the samples one after the other, then a checksum (base/checksum.h, uint64) of each.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/new_file.h"

namespace kvcal::calib {

/// Bytes of a file that holds `tokens` tokens of `samples` samples in all.
[[nodiscard]] std::int64_t activation_file_bytes(std::int64_t samples, std::int64_t tokens,
                                                 std::int64_t hidden_size, at::ScalarType dtype);

/// Written through: each tensor goes to its layer's file at once, and stays in memory while the cache has
/// room, the highest layers longest, since the backward pass comes to them first. finish() makes a layer's
/// file whole and durable under its own name. put() and get() may be called from several threads at once.
class ActivationStore {
 public:
  /// sample_tokens: the length of each sample; file_of: where a layer's file lies;
  /// cache_bytes: what may stay in memory.
  ActivationStore(std::vector<std::int64_t> sample_tokens, std::int64_t hidden_size, at::ScalarType dtype,
                  std::int64_t cache_bytes, std::function<std::filesystem::path(int)> file_of);
  ~ActivationStore();
  ActivationStore(const ActivationStore&) = delete;
  ActivationStore& operator=(const ActivationStore&) = delete;

  /// value: [tokens of the sample, hidden_size]. Throws SystemError (a full disk, say).
  void put(int layer, std::int64_t sample, const at::Tensor& value);
  /// What put() was given, to the bit, of a layer that is finished. Throws SystemError where the file cannot
  /// be read, DamagedCheckpoint where it is not what was written.
  [[nodiscard]] at::Tensor get(int layer, std::int64_t sample);
  /// All samples of the layer have been put: syncs the file and gives it its name.
  void finish(int layer);
  /// Removes a layer's file and what the cache holds of it.
  void drop(int layer);

 private:
  class ReadFile;
  /// A layer that is being written, and its samples' checksums.
  struct Unfinished {
    base::NewFile file;
    std::vector<std::uint64_t> checksums;
  };
  Unfinished& unfinished(int layer);
  const ReadFile& file_for_reading(int layer);
  void remember(int layer, std::int64_t sample, const at::Tensor& value);
  [[nodiscard]] std::int64_t sample_bytes(std::int64_t sample) const;

  std::vector<std::int64_t> sample_tokens_;
  std::vector<std::int64_t> offsets_;  // byte offset of each sample, and of the checksums last
  std::int64_t hidden_size_;
  at::ScalarType dtype_;
  std::int64_t cache_bytes_;
  std::int64_t cached_bytes_ = 0;
  std::function<std::filesystem::path(int)> file_of_;
  std::mutex mutex_;  // of all that follows, and cached_bytes_
  std::map<std::pair<int, std::int64_t>, at::Tensor> cache_;
  std::map<int, std::unique_ptr<Unfinished>> writing_;
  std::map<int, std::unique_ptr<ReadFile>> reading_;
};

}  // namespace kvcal::calib
