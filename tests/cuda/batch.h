// tests/cuda/batch.h: a batch in buffers of exactly its size, where AddressSanitizer sees a step over an end, or
// compute-sanitizer on a device, and the C API's arguments for it, for tests to spoil.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <vector>

#include "cuda/paged_cache.h"

namespace kvcal::codec {

/// Bytes of exactly this number, aligned as records are, of random contents.
class Buffer {
 public:
  Buffer(std::size_t bytes, unsigned seed)
      : size_(bytes),
        data_(static_cast<std::uint8_t*>(::operator new (bytes, std::align_val_t{KVCAL_RECORD_ALIGNMENT}))) {
    fill(seed);
  }
  Buffer(std::span<const float> numbers, KvcalType type);

  void fill(unsigned seed) {
    std::mt19937 random(seed);
    for (std::size_t i = 0; i < size_; ++i) data_.get()[i] = static_cast<std::uint8_t>(random());
  }
  [[nodiscard]] std::uint8_t* data() { return data_.get(); }
  [[nodiscard]] std::vector<std::uint8_t> bytes() const { return {data_.get(), data_.get() + size_}; }

 private:
  struct Free {
    void operator()(std::uint8_t* data) const {
      ::operator delete (data, std::align_val_t{KVCAL_RECORD_ALIGNMENT});
    }
  };
  std::size_t size_;
  std::unique_ptr<std::uint8_t, Free> data_;
};

/// What kvcal_append() and kvcal_dequantise() are given: pointers to host memory. On a device a call works on copies of as
/// much as the arguments say there is, and copies what it may write back.
struct Arguments {
  const KvcalCodebook* codebook = nullptr;
  std::uint32_t layer = 0;
  KvcalCache cache{};
  KvcalTable table{};
  KvcalNewTokens tokens{};
  KvcalRange range{};
  KvcalPages keys{}, values{};
  void* stream = nullptr;
  KvcalDevice device = KVCAL_DEVICE_CPU;  ///< of the codebook

  /// On a device, KVCAL_INVALID_DATA is what the call added to the counter of what was refused.
  [[nodiscard]] KvcalStatus append() const;
  [[nodiscard]] KvcalStatus dequantise() const { return dequantise(true, true); }
  /// Keys or values alone.
  [[nodiscard]] KvcalStatus dequantise_one(bool of_keys) const { return dequantise(of_keys, !of_keys); }
  /// kvcal_counters().
  [[nodiscard]] KvcalStatus read_counters(KvcalCounters& to) const;

 private:
  [[nodiscard]] KvcalStatus dequantise(bool with_keys, bool with_values) const;
};

/// Sequences that have nothing yet and bring tokens. Their pages lie in no order, one page of the cache is nobody's.
class Batch {
 public:
  Batch(const CacheShape& shape, const std::vector<std::size_t>& tokens, std::uint32_t max_pages,
        unsigned seed = 1, KvcalType type = KVCAL_FLOAT32, KvcalDevice device = KVCAL_DEVICE_CPU);

  /// All is as it should be: every sequence whole in append(), all of its pages in dequantise().
  [[nodiscard]] Arguments arguments();
  [[nodiscard]] std::size_t sequences() const { return lengths.size(); }
  /// Rows first to last of the input as the CPU codec stores them.
  [[nodiscard]] RecordPages expected(std::size_t first, std::size_t last) const;
  /// Of a page that is read back, keys or values.
  [[nodiscard]] std::size_t page_bytes(std::size_t dim) const {
    return shape.page_tokens * shape.kv_heads * dim * (type == KVCAL_FLOAT32 ? 4 : 2);
  }

  CacheShape shape;
  KvcalDevice device;
  KvcalType type;  ///< of what is put in and read
  std::uint32_t max_pages;
  TestCodebook codebook;
  OpenCodebook opened;
  KvcalRecordLayout layout{};
  std::vector<std::int32_t> pages, sink_slots, starts{0};
  std::vector<std::int32_t> lengths;  ///< before append()
  std::vector<std::int32_t> ends;     ///< after it
  std::vector<float> keys, values;    ///< of the input, as floats
  std::unique_ptr<Buffer> records, key_sinks, value_sinks, new_keys, new_values, read_keys, read_values;
  KvcalCounters counters{};
};

/// A batch where test_device() says.
struct PlacedBatch : Batch {
  PlacedBatch(const CacheShape& of, const std::vector<std::size_t>& tokens, std::uint32_t most_pages,
              unsigned seed = 1, KvcalType numbers = KVCAL_FLOAT32)
      : Batch(of, tokens, most_pages, seed, numbers, test_device()) {}
};

}  // namespace kvcal::codec
