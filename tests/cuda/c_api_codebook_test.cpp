// Codebooks that are damaged or hostile, at the C API: what cannot be served is refused in a sentence, and whatever
// kvcal_codebook_open() takes can be used without a step outside its bytes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <random>
#include <string>

#include "cuda/batch.h"
#include "cuda/kernels/flat_reader.h"

namespace kvcal::codec {
namespace {

using Bytes = std::vector<std::byte>;

/// Writes a field of a block's header or of its first layer.
template <typename T>
void put(Bytes& flat, std::size_t offset, T value) {
  std::memcpy(flat.data() + offset, &value, sizeof(value));
}
constexpr std::size_t kLayer = sizeof(KvcalFlatHeader);  // where flat_bytes() puts the first

void seal(Bytes& flat) {
  put(flat, offsetof(KvcalFlatHeader, checksum),
      flat_checksum(std::span(flat).subspan(sizeof(KvcalFlatHeader))));
}

/// The status of opening a block; `opened` is null unless it is KVCAL_OK.
KvcalStatus open(const Bytes& flat, OpenCodebook& opened) {
  KvcalCodebook* codebook = nullptr;
  const KvcalStatus status = kvcal_codebook_open(flat.data(), flat.size(), KVCAL_DEVICE_CPU, &codebook);
  opened.reset(codebook);
  EXPECT_EQ(codebook != nullptr, status == KVCAL_OK);
  return status;
}

void expect_refused(const Bytes& flat, const std::string& says) {
  OpenCodebook opened;
  EXPECT_EQ(open(flat, opened), KVCAL_INVALID_CODEBOOK) << says;
  const std::string said = kvcal_last_error();
  EXPECT_EQ(said.rfind("kvcal_codebook_open: the block ", 0), 0U) << said;
  EXPECT_NE(said.find(says), std::string::npos) << "'" << said << "' does not say '" << says << "'";
}

TEST(CApiCodebook, WhatIsNotWholeOrNotOursIsRefused) {
  const Bytes flat = make_codebook({}).flat;
  for (std::size_t bytes = 1; bytes < flat.size(); bytes += bytes < 260 ? 1 : 61)
    expect_refused(Bytes(flat.begin(), flat.begin() + static_cast<std::ptrdiff_t>(bytes)),
                   bytes < sizeof(KvcalFlatHeader) ? "no flat codebook" : "not whole");
  KvcalCodebook* none = nullptr;
  EXPECT_EQ(kvcal_codebook_open(flat.data(), 0, KVCAL_DEVICE_CPU, &none), KVCAL_INVALID_CODEBOOK);
  Bytes longer = flat;
  longer.push_back(std::byte{0});
  expect_refused(longer, "not whole");
  for (const std::uint32_t version : {0U, 4U, UINT32_MAX}) {
    Bytes other = flat;
    put(other, offsetof(KvcalFlatHeader, version), version);
    expect_refused(other, "version " + std::to_string(version));
  }
  Bytes other = flat;
  other[7] ^= std::byte{1};
  expect_refused(other, "no flat codebook");
}

TEST(CApiCodebook, AFlippedByteBehindTheHeaderIsSeen) {
  const Bytes flat = make_codebook({}).flat;
  for (std::size_t i = sizeof(KvcalFlatHeader); i < flat.size(); ++i) {
    Bytes damaged = flat;
    damaged[i] ^= std::byte{0x10};
    expect_refused(damaged, "checksum");
  }
}

TEST(CApiCodebook, BytesNeedNotBeAligned) {
  const Bytes flat = make_codebook({}).flat;
  Bytes shifted(flat.size() + 1);
  std::copy(flat.begin(), flat.end(), shifted.begin() + 1);
  KvcalCodebook* codebook = nullptr;
  EXPECT_EQ(kvcal_codebook_open(shifted.data() + 1, flat.size(), KVCAL_DEVICE_CPU, &codebook), KVCAL_OK);
  kvcal_codebook_close(codebook);
}

TEST(CApiCodebook, OffsetsThatLeaveTheBlockAreRefused) {
  const Bytes flat = make_codebook({.outliers = 0.02}).flat;
  const std::uint64_t size = flat.size();
  for (const std::size_t field :
       {offsetof(KvcalFlatLayer, key_affines), offsetof(KvcalFlatLayer, key_lower),
        offsetof(KvcalFlatLayer, key_upper), offsetof(KvcalFlatLayer, key_midpoints),
        offsetof(KvcalFlatLayer, key_levels), offsetof(KvcalFlatLayer, value_midpoints),
        offsetof(KvcalFlatLayer, value_levels)}) {
    for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{64}, std::uint64_t{260}, size,
                                       size + 64, std::uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 63}) {
      Bytes hostile = flat;
      put(hostile, kLayer + field, offset);
      seal(hostile);
      expect_refused(hostile, "does not lie in the block");
    }
  }
  for (const std::uint32_t heads : {3U, 1U << 20, (1U << 20) + 1, UINT32_MAX}) {
    Bytes hostile = flat;
    put(hostile, kLayer + offsetof(KvcalFlatLayer, kv_heads), heads * 64);
    seal(hostile);
    expect_refused(hostile, "layer 0");
  }
  const auto header_refused = [&](std::size_t field, auto value, const char* says) {
    Bytes hostile = flat;
    put(hostile, field, value);
    expect_refused(hostile, says);
  };
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{8}, size, UINT64_MAX - 63})
    header_refused(offsetof(KvcalFlatHeader, layers_offset), offset, "the layers at");
  for (const std::uint32_t layers : {1000U, UINT32_MAX})
    header_refused(offsetof(KvcalFlatHeader, layers), layers, "the layers at");
  for (const std::uint32_t bytes : {0U, 72U, 84U, UINT32_MAX})
    header_refused(offsetof(KvcalFlatHeader, layer_bytes), bytes, "contradicts itself");
  header_refused(offsetof(KvcalFlatHeader, layer_bytes), UINT32_MAX - 7, "the layers at");
  for (const std::uint32_t bytes : {0U, 248U, UINT32_MAX})
    header_refused(offsetof(KvcalFlatHeader, header_bytes), bytes, "contradicts itself");
  for (const std::uint32_t bits : {0U, 1U, 5U, 64U, UINT32_MAX})
    header_refused(offsetof(KvcalFlatHeader, bits), bits, "contradicts itself");
}

/// It opens, but no kernel can serve its layer: refused by everything that takes the layer.
void expect_no_kernel(const Bytes& flat, const std::string& says) {
  OpenCodebook opened;
  ASSERT_EQ(open(flat, opened), KVCAL_OK) << kvcal_last_error();
  KvcalLayerInfo info;
  EXPECT_EQ(kvcal_layer_info(opened.get(), 0, &info), KVCAL_OK);
  Batch other({.outliers = 0.02}, {3}, 1);
  Arguments a = other.arguments();
  a.codebook = opened.get();
  KvcalRecordLayout layout;
  for (const auto& call :
       {std::function([&] {
          return kvcal_record_layout(opened.get(), 0, 16, KVCAL_DEFAULT_SLOTS, KVCAL_DEFAULT_SLOTS, &layout);
        }),
        std::function([&] { return a.append(); }), std::function([&] { return a.dequantise(); })}) {
    EXPECT_EQ(call(), KVCAL_INVALID_CODEBOOK);
    const std::string said = kvcal_last_error();
    EXPECT_NE(said.find(says), std::string::npos) << "'" << said << "' does not say '" << says << "'";
  }
}

TEST(CApiCodebook, ALayerWithoutAKernelIsRefused) {
  expect_no_kernel(make_codebook({.key_dim = 96}).flat, "head_dim 96");
  expect_no_kernel(make_codebook({.value_dim = 80}).flat, "head_dim 80");
  expect_no_kernel(make_codebook({.sinks = 17}).flat, "17 sinks");
  const Bytes flat = make_codebook({.outliers = 0.02}).flat;
  Bytes headless = flat;
  put(headless, kLayer + offsetof(KvcalFlatLayer, kv_heads), std::uint32_t{0});
  seal(headless);
  expect_no_kernel(headless, "no kv heads");
  for (const float fraction : {0.5F, 1e30F, INFINITY, -0.01F, std::nanf("")}) {
    Bytes other = flat;
    put(other, offsetof(KvcalFlatHeader, outlier_fraction), fraction);
    expect_no_kernel(other, "outlier fraction");
  }
}

/// Appends and reads back a few tokens with whatever was opened, in a cache of exactly its size.
void use(const KvcalCodebook* codebook, Batch& batch) {
  KvcalCodebookInfo codebook_info;
  ASSERT_EQ(kvcal_codebook_info(codebook, &codebook_info), KVCAL_OK);
  for (std::uint32_t layer = 0; layer < std::min(codebook_info.layers, 3U); ++layer) {
    KvcalLayerInfo info;
    ASSERT_EQ(kvcal_layer_info(codebook, layer, &info), KVCAL_OK);
    Arguments a = batch.arguments();
    const KvcalStatus status =
        kvcal_record_layout(codebook, layer, 16, KVCAL_DEFAULT_SLOTS, KVCAL_DEFAULT_SLOTS, &a.cache.layout);
    ASSERT_TRUE(status == KVCAL_OK || status == KVCAL_INVALID_CODEBOOK) << kvcal_last_error();
    a.codebook = codebook;
    a.layer = layer;
    if (status != KVCAL_OK) {
      EXPECT_EQ(a.append(), KVCAL_INVALID_CODEBOOK);
      continue;
    }
    // One row of zeros for all heads: strides 0.
    const std::size_t sinks = std::size_t{info.kv_heads} * codebook_info.sinks * 256 * 2;
    Buffer records(info.kv_heads * a.cache.layout.record_bytes, layer), key_sinks(sinks, 1),
        value_sinks(sinks, 2);
    Buffer rows(256 * 4, 3), pages(std::size_t{info.kv_heads} * 16 * 256 * 4, 4);
    const std::int32_t page = 0, slot = 0, starts[] = {0, 3}, past = 0, after = 3;
    a.cache.records = records.data();
    a.cache.pages = a.cache.sink_slots = 1;
    a.cache.key_sinks = key_sinks.data();
    a.cache.value_sinks = value_sinks.data();
    a.table = {1, 1, &page, &slot};
    const KvcalRows row{rows.data(), KVCAL_FLOAT32, 0, 0};
    a.tokens = {3, starts, &past, 3, row, row};
    a.range = {0, 1, &after, nullptr};
    a.keys = a.values = {pages.data(), KVCAL_FLOAT32, 1, 0, std::int64_t{info.kv_heads} * 256, 256};
    EXPECT_EQ(a.append(), KVCAL_OK) << kvcal_last_error();
    EXPECT_EQ(a.dequantise(), KVCAL_OK) << kvcal_last_error();
  }
}

TEST(CApiCodebook, WhateverOpensCanBeUsed) {
  Batch batch({}, {3}, 1);
  std::mt19937 random(3);
  int opened_ones = 0;
  for (const CacheShape& shape :
       {CacheShape{.bits = 2, .kv_heads = 1}, CacheShape{.bits = 3, .outliers = 0}}) {
    const Bytes flat = make_codebook(shape).flat;
    const std::size_t named = kLayer + sizeof(KvcalFlatLayer);
    const auto try_one = [&](Bytes hostile) {
      seal(hostile);
      OpenCodebook opened;
      const KvcalStatus status = open(hostile, opened);
      ASSERT_TRUE(status == KVCAL_OK || status == KVCAL_INVALID_CODEBOOK) << kvcal_last_error();
      opened_ones += status == KVCAL_OK ? 1 : 0;
      if (opened != nullptr) use(opened.get(), batch);
    };
    // Each bit of the header and the layer; then numbers of 32 bits, some at once; then the tables.
    for (std::size_t bit = 64; bit < named * 8; ++bit) {
      Bytes hostile = flat;
      hostile[bit / 8] ^= std::byte{1} << static_cast<int>(bit % 8);
      try_one(hostile);
    }
    for (int i = 0; i < 1000; ++i) {
      Bytes hostile = flat;
      for (unsigned n = static_cast<unsigned>(random() % 3) + 1; n > 0; --n) {
        const std::uint32_t interesting[] = {0,
                                             1,
                                             2,
                                             16,
                                             64,
                                             128,
                                             256,
                                             257,
                                             320,
                                             1U << 20,
                                             1U << 31,
                                             ~0U,
                                             ~7U,
                                             ~63U,
                                             1000,
                                             576,
                                             640,
                                             832,
                                             static_cast<std::uint32_t>(random())};
        put(hostile, 8 + random() % (named / 4 - 2) * 4, interesting[random() % std::size(interesting)]);
      }
      try_one(hostile);
    }
    for (int i = 0; i < 20; ++i) {
      Bytes hostile = flat;
      for (std::size_t at = named; at < hostile.size(); ++at) hostile[at] = static_cast<std::byte>(random());
      try_one(hostile);
    }
  }
  EXPECT_GT(opened_ones, 500);
}

}  // namespace
}  // namespace kvcal::codec
