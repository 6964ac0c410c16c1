// tests/cuda/paged_cache.h: a paged cache in host memory and the batches that tests put into it through the C API.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda/flat_codebook.h"
#include "cuda/kernels/kvcal_cuda.h"
#include "cuda/record_codec.h"

namespace kvcal::codec {

/// What a layer and its cache look like.
struct CacheShape {
  int bits = 4;
  unsigned kv_heads = 2, key_dim = 64, value_dim = 64;
  unsigned page_tokens = 16;
  double outliers = 0.01;
  unsigned sinks = 1;
  unsigned key_slots = KVCAL_DEFAULT_SLOTS, value_slots = KVCAL_DEFAULT_SLOTS;
};

/// Levels that are no straight line, from -1 to 1, with Q-Norm.
inline Datatype some_datatype(int bits, float bend) {
  std::vector<float> centroids;
  const int count = 1 << bits;
  for (int i = 0; i < count; ++i) {
    const float x = (2.0F * static_cast<float>(i) + 1) / static_cast<float>(count) - 1;
    centroids.push_back(x * (1 - bend) + x * x * x * bend);
  }
  return make_datatype(centroids, {1.01F, 0.002F});
}

/// Numbers with heavy tails; channels differ in width and place. [rows][channels]
inline std::vector<float> some_numbers(std::size_t rows, std::size_t channels, unsigned seed) {
  std::mt19937 random(seed);
  std::student_t_distribution<float> heavy(4);
  std::vector<float> x(rows * channels);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto channel = static_cast<float>(i % channels % 23);
    x[i] = heavy(random) * (0.3F + 0.1F * channel) + 0.05F * channel;
  }
  return x;
}

/// The one layer of a flat codebook, and the same layer for the CPU codec.
struct TestCodebook {
  std::vector<std::byte> flat;
  RecordLayer layer;
};

inline TestCodebook make_codebook(const CacheShape& shape) {
  const std::size_t channels = std::size_t{shape.kv_heads} * shape.key_dim;
  FlatLayer flat;
  flat.kv_heads = shape.kv_heads;
  flat.key_dim = shape.key_dim;
  flat.value_dim = shape.value_dim;
  const std::vector<float> seen = some_numbers(400, channels, 99);
  for (std::size_t c = 0; c < channels; ++c) {
    std::vector<float> column;
    for (std::size_t row = 0; row < 400; ++row) column.push_back(seen[row * channels + c]);
    flat.key_lower.push_back(quantile(column, shape.outliers / 2));
    flat.key_upper.push_back(quantile(column, 1 - shape.outliers / 2));
  }
  flat.key = some_datatype(shape.bits, 0.3F);
  flat.value = some_datatype(shape.bits, 0.5F);
  FlatCodebook codebook;
  codebook.sinks = shape.sinks;
  codebook.outlier_fraction = shape.outliers;
  codebook.layers.push_back(flat);
  return {flat_bytes(codebook),
          {shape.kv_heads, KeyNormaliser(flat.key_lower, flat.key_upper, shape.outliers), flat.key,
           flat.value, shape.outliers, shape.sinks}};
}

struct CloseCodebook {
  void operator()(KvcalCodebook* codebook) const { kvcal_codebook_close(codebook); }
};
using OpenCodebook = std::unique_ptr<KvcalCodebook, CloseCodebook>;

inline OpenCodebook open_codebook(const TestCodebook& codebook) {
  KvcalCodebook* opened = nullptr;
  EXPECT_EQ(kvcal_codebook_open(codebook.flat.data(), codebook.flat.size(), KVCAL_DEVICE_CPU, &opened),
            KVCAL_OK)
      << kvcal_last_error();
  return OpenCodebook(opened);
}

/// New tokens of one sequence. keys: [tokens][kv_heads * key_dim].
struct NewTokens {
  std::vector<float> keys, values;
  std::size_t tokens = 0;
};

/// A cache whose pages lie in no order and hold rubbish before they are used.
class PagedCache {
 public:
  PagedCache(const CacheShape& shape, std::uint32_t sequences, std::uint32_t max_pages)
      : shape_(shape),
        codebook_(make_codebook(shape)),
        opened_(open_codebook(codebook_)),
        max_pages_(max_pages) {
    EXPECT_EQ(kvcal_record_layout(opened_.get(), 0, shape.page_tokens, shape.key_slots, shape.value_slots,
                                  &layout_),
              KVCAL_OK)
        << kvcal_last_error();
    table_.resize(std::size_t{sequences} * max_pages);
    std::iota(table_.begin(), table_.end(), 0);
    std::mt19937 random(7);
    std::shuffle(table_.begin(), table_.end(), random);
    records_ = std::make_unique<Page[]>((bytes() + sizeof(Page) - 1) / sizeof(Page));
    std::generate_n(records(), bytes(), [&] { return static_cast<std::uint8_t>(random()); });
    sink_slots_.resize(sequences);
    std::iota(sink_slots_.rbegin(), sink_slots_.rend(), 0);
    key_sinks_.resize(std::size_t{sequences} * shape.kv_heads * shape.sinks * shape.key_dim);
    value_sinks_.resize(std::size_t{sequences} * shape.kv_heads * shape.sinks * shape.value_dim);
    lengths_.resize(sequences);
  }

  /// A part for each sequence, in one call. type: what the kernel is given.
  KvcalStatus append(const std::vector<NewTokens>& parts, KvcalType type = KVCAL_FLOAT32);

  /// Keys and values of a sequence, [tokens][heads * dim], read back in `type` and widened.
  NewTokens read(std::uint32_t sequence, KvcalType type = KVCAL_FLOAT16);

  /// The bytes of a record; those behind its last part, which nobody writes, as 0.
  [[nodiscard]] std::vector<std::uint8_t> record(std::uint32_t sequence, std::size_t page,
                                                 std::size_t head) const;
  [[nodiscard]] std::vector<std::uint16_t> sinks(std::uint32_t sequence, bool keys) const;

  [[nodiscard]] KvcalCache cache() {
    return {layout_,   records(), table_.size(), key_sinks_.data(), value_sinks_.data(), sink_slots_.size(),
            &counters_};
  }
  [[nodiscard]] KvcalTable table() const {
    return {static_cast<std::uint32_t>(sink_slots_.size()), max_pages_, table_.data(), sink_slots_.data()};
  }
  [[nodiscard]] const CacheShape& shape() const { return shape_; }
  [[nodiscard]] const KvcalRecordLayout& layout() const { return layout_; }
  [[nodiscard]] const TestCodebook& codebook() const { return codebook_; }
  [[nodiscard]] const KvcalCodebook* opened() const { return opened_.get(); }
  [[nodiscard]] const KvcalCounters& counters() const { return counters_; }
  [[nodiscard]] std::vector<std::int32_t>& lengths() { return lengths_; }
  [[nodiscard]] std::uint8_t* records() { return reinterpret_cast<std::uint8_t*>(records_.get()); }
  [[nodiscard]] std::size_t bytes() const { return table_.size() * shape_.kv_heads * layout_.record_bytes; }

 private:
  struct alignas(KVCAL_RECORD_ALIGNMENT) Page {
    std::uint8_t bytes[KVCAL_RECORD_ALIGNMENT];
  };

  CacheShape shape_;
  TestCodebook codebook_;
  OpenCodebook opened_;
  std::uint32_t max_pages_;
  KvcalRecordLayout layout_{};
  std::vector<std::int32_t> table_, sink_slots_, lengths_;
  std::unique_ptr<Page[]> records_;
  std::vector<std::uint16_t> key_sinks_, value_sinks_;
  KvcalCounters counters_{};
};

/// Numbers as a tensor of a type: 16 bytes a block, so that it is aligned.
class TypedNumbers {
 public:
  TypedNumbers(const std::vector<float>& numbers, KvcalType type);
  TypedNumbers(std::size_t count, KvcalType type);
  [[nodiscard]] void* data() { return blocks_.get(); }
  [[nodiscard]] std::vector<float> numbers() const;

 private:
  struct alignas(16) Block {
    std::uint16_t halves[8];
  };
  std::size_t count_;
  KvcalType type_;
  std::unique_ptr<Block[]> blocks_;
};

}  // namespace kvcal::codec
