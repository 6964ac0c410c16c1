// tests/cuda/paged_cache.h: a paged cache, and the batches that tests put into it through the C API; on the CPU, or where
// KVCAL_TEST_DEVICE says (test_memory.h).
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda/kernels/kvcal_cuda.h"
#include "cuda/test_codebook.h"
#include "cuda/test_memory.h"

namespace kvcal::codec {

/// New tokens of one sequence. keys: [tokens][kv_heads * key_dim].
struct NewTokens {
  std::vector<float> keys, values;
  std::size_t tokens = 0;
};

/// A cache whose pages lie in no order and hold rubbish before they are used. Throws std::runtime_error where there is
/// no test_device().
class PagedCache {
 public:
  PagedCache(const CacheShape& shape, std::uint32_t sequences, std::uint32_t max_pages);

  /// A part for each sequence, in one call. type: what the kernel is given.
  /// On a device, what kvcal_counters() says, which waits.
  KvcalStatus append(const std::vector<NewTokens>& parts, KvcalType type = KVCAL_FLOAT32);

  /// Keys and values of a sequence, [tokens][heads * dim], read back in `type` and widened.
  NewTokens read(std::uint32_t sequence, KvcalType type = KVCAL_FLOAT16);

  /// The bytes of a record; those behind its last part, which nobody writes, as 0.
  [[nodiscard]] std::vector<std::uint8_t> record(std::uint32_t sequence, std::size_t page,
                                                 std::size_t head) const;
  [[nodiscard]] std::vector<std::uint16_t> sinks(std::uint32_t sequence, bool keys) const;

  [[nodiscard]] const CacheShape& shape() const { return shape_; }
  [[nodiscard]] const KvcalRecordLayout& layout() const { return layout_; }
  [[nodiscard]] const TestCodebook& codebook() const { return codebook_; }
  [[nodiscard]] KvcalCounters counters() const;
  [[nodiscard]] std::vector<std::int32_t>& lengths() { return lengths_; }

 private:
  /// From the device's memory.
  [[nodiscard]] KvcalCache cache();
  /// The status of a call that returned `status`: on a device, of its work too.
  [[nodiscard]] KvcalStatus finished(KvcalStatus status);

  CacheShape shape_;
  TestCodebook codebook_;
  OpenCodebook opened_;
  std::uint32_t max_pages_;
  KvcalRecordLayout layout_{};
  std::vector<std::int32_t> table_, sink_slots_, lengths_;
  TestMemory records_, key_sinks_, value_sinks_, counters_;
};

/// Numbers as a tensor of a type.
class TypedNumbers {
 public:
  TypedNumbers(const std::vector<float>& numbers, KvcalType type);
  TypedNumbers(std::size_t count, KvcalType type);
  /// For the C API.
  [[nodiscard]] void* data() { return memory_.place(); }
  [[nodiscard]] std::vector<float> numbers() const;

 private:
  std::size_t count_;
  KvcalType type_;
  TestMemory memory_;
};

}  // namespace kvcal::codec
