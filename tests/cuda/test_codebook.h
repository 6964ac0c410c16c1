// tests/cuda/test_codebook.h: one layer's codebook and numbers for it, as tests and benchmarks of the kernels take them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <utility>
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
  // Of values, where they are others than keys'.
  std::optional<int> value_bits = {};
  std::optional<double> value_outliers = {};
  unsigned value_rotation_block = 0;
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
  flat.value = some_datatype(shape.value_bits.value_or(shape.bits), 0.5F);
  flat.value_outliers = shape.value_outliers;
  flat.value_rotation_block = shape.value_rotation_block;
  FlatCodebook codebook;
  codebook.sinks = shape.sinks;
  codebook.outlier_fraction = shape.outliers;
  codebook.layers.push_back(flat);
  return {flat_bytes(codebook),
          {shape.kv_heads, KeyNormaliser(flat.key_lower, flat.key_upper, shape.outliers), flat.key,
           flat.value, shape.value_outliers.value_or(shape.outliers), shape.sinks}};
}

struct CloseCodebook {
  void operator()(KvcalCodebook* codebook) const { kvcal_codebook_close(codebook); }
};
using OpenCodebook = std::unique_ptr<KvcalCodebook, CloseCodebook>;

/// Throws std::runtime_error with what the C API says: there is nothing to test without one.
inline OpenCodebook open_codebook(const TestCodebook& codebook, KvcalDevice device = KVCAL_DEVICE_CPU) {
  KvcalCodebook* opened = nullptr;
  if (kvcal_codebook_open(codebook.flat.data(), codebook.flat.size(), device, &opened) != KVCAL_OK)
    throw std::runtime_error(kvcal_last_error());
  return OpenCodebook(opened);
}

}  // namespace kvcal::codec
