// calib/activation_store.h: hidden states, or their gradients, of all samples by layer: files, with a cache
// in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace kvcal::calib {

/// Written through: each tensor goes to its layer's file at once, and stays in memory while the cache has
/// room, the highest layers longest, since the backward pass comes to them first. finish() makes a layer's
/// file whole and durable under its own name.
class ActivationStore {
 public:
  /// sample_tokens: the length of each sample; file_of: where a layer's file lies; cache_bytes: what may stay
  /// in memory.
  ActivationStore(std::vector<std::int64_t> sample_tokens, std::int64_t hidden_size, at::ScalarType dtype,
                  std::int64_t cache_bytes, std::function<std::filesystem::path(int)> file_of);
  ~ActivationStore();
  ActivationStore(const ActivationStore&) = delete;
  ActivationStore& operator=(const ActivationStore&) = delete;

  /// value: [tokens of the sample, hidden_size]. Throws SystemError (a full disk, say).
  void put(int layer, std::int64_t sample, const at::Tensor& value);
  /// What put() was given, to the bit. Throws SystemError or InvalidInput where the file is not as it should
  /// be.
  [[nodiscard]] at::Tensor get(int layer, std::int64_t sample);
  /// All samples of the layer have been put: syncs the file and gives it its name.
  void finish(int layer);
  /// Whether a whole file of this layer is there, of this run or an earlier one.
  [[nodiscard]] bool finished(int layer) const;
  /// Removes a layer's file and what the cache holds of it.
  void drop(int layer);

 private:
  struct OpenFile;
  OpenFile& file_for_writing(int layer);
  OpenFile& file_for_reading(int layer);
  void remember(int layer, std::int64_t sample, const at::Tensor& value);
  [[nodiscard]] std::int64_t sample_bytes(std::int64_t sample) const;
  [[nodiscard]] std::int64_t file_bytes() const { return offsets_.back(); }

  std::vector<std::int64_t> sample_tokens_;
  std::vector<std::int64_t> offsets_;  // byte offset of each sample, and the file's size last
  std::int64_t hidden_size_;
  at::ScalarType dtype_;
  std::int64_t cache_bytes_;
  std::int64_t cached_bytes_ = 0;
  std::function<std::filesystem::path(int)> file_of_;
  std::map<std::pair<int, std::int64_t>, at::Tensor> cache_;
  std::map<int, std::unique_ptr<OpenFile>> writing_, reading_;
};

}  // namespace kvcal::calib
