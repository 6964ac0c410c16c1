// What a record keeps where it cannot keep all: slots, sinks, numbers beyond fp16, damaged records; and its
// layout.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/error.h"
#include "cuda/kernels/record_sizes.h"
#include "cuda/record_codec.h"

namespace kvcal::codec {
namespace {

constexpr std::size_t kDim = 64, kTokens = 20;

// One head of 64, four bits, thresholds -1 and 1.
RecordLayer unit_layer(double key_outliers, double value_outliers, std::size_t sinks = 0) {
  std::vector<float> centroids;
  for (int i = 0; i < 16; ++i) centroids.push_back(static_cast<float>(2 * i - 15) / 16);
  const Datatype datatype = make_datatype(centroids);
  const std::vector<float> lower(kDim, -1.0F), upper(kDim, 1.0F);
  return {1, KeyNormaliser(lower, upper, key_outliers), datatype, datatype, value_outliers, sinks};
}

struct Slot {
  unsigned index;
  float delta;
  friend bool operator==(const Slot&, const Slot&) = default;
};

std::vector<Slot> slots_at(const RecordPages& pages, std::size_t at, std::size_t slots) {
  std::vector<Slot> read;
  for (std::size_t i = 0; i < slots; ++i)
    read.push_back(
        {get_u16(pages.records, at + 4 * i), half_to_float(get_u16(pages.records, at + 4 * i + 2))});
  return read;
}

struct Sequence {
  std::vector<float> keys = std::vector<float>(kTokens * kDim), values = keys;
  float& key(std::size_t token, std::size_t channel) { return keys[token * kDim + channel]; }
  float& value(std::size_t token, std::size_t channel) { return values[token * kDim + channel]; }
  [[nodiscard]] RecordPages encode(const RecordLayer& layer, const KvcalRecordLayout& layout) const {
    return encode_records(keys, values, layer, layout);
  }
  // What it reads as.
  [[nodiscard]] static Sequence decode(const RecordPages& pages, const RecordLayer& layer) {
    Sequence read;
    decode_records(pages, layer, read.keys, read.values);
    return read;
  }
};

TEST(RecordSlots, KeepATilesLargestDeltasOfKeys) {
  Sequence sequence;
  // They read as +-15/16: deltas 0.5625, -1.0625, 4.0625, 1.0625, 2.0625, 1.0625.
  sequence.key(0, 0) = 1.5F;
  sequence.key(1, 7) = -2;
  sequence.key(3, 9) = 5;
  sequence.key(3, 11) = 2;
  sequence.key(9, 63) = 3;
  sequence.key(15, 1) = 2;
  sequence.key(16, 2) = 3;  // the next tile
  const RecordLayer layer = unit_layer(0.01, 0);
  const KvcalRecordLayout layout = make_record_layout(4, 64, 64, 64, 4, 0);
  const RecordPages pages = sequence.encode(layer, layout);
  const std::vector<Slot> expected{
      {3 * 64 + 9, 4.0625F}, {9 * 64 + 63, 2.0625F}, {64 + 7, -1.0625F}, {3 * 64 + 11, 1.0625F}};
  EXPECT_EQ(slots_at(pages, layout.key_outliers, 4), expected);
  EXPECT_EQ(slots_at(pages, layout.key_outliers + 16, 2), (std::vector<Slot>{{2, 2.0625F}, {0, 0}}));
  EXPECT_EQ(pages.counters.key_outliers, 7U);
  EXPECT_EQ(pages.counters.dropped_keys, 2U);
  Sequence read = Sequence::decode(pages, layer);
  EXPECT_EQ(read.key(3, 9), 5);
  EXPECT_EQ(read.key(1, 7), -2);
  EXPECT_EQ(read.key(16, 2), 3);
  EXPECT_EQ(read.key(15, 1), 0.9375F);
  EXPECT_EQ(read.key(0, 0), 0.9375F);
}

TEST(RecordSlots, KeepAStripsLargestDeltasOfValues) {
  Sequence sequence;
  // p = 0.05 of 64: between the second smallest and largest numbers and their neighbours: one far number
  // leaves both thresholds at 0, so that it is its own delta.
  for (std::size_t t = 0; t < kTokens; ++t) sequence.value(t, 16 + t % 16) = static_cast<float>(1 + t);
  sequence.value(2, 18) = -20;  // as large as token 19's, and before it
  sequence.value(5, 21) = 0;
  sequence.value(5, 63) = 0.5F;  // of another strip
  const RecordLayer layer = unit_layer(0, 0.05);
  const KvcalRecordLayout layout = make_record_layout(4, 64, 64, 64, 0, 4);
  const RecordPages pages = sequence.encode(layer, layout);
  const std::vector<Slot> expected{
      {2 * 16 + 2, -20}, {19 * 16 + 3, 20}, {18 * 16 + 2, 19}, {17 * 16 + 1, 18}};
  EXPECT_EQ(slots_at(pages, layout.value_outliers + 16, 4), expected);
  EXPECT_EQ(slots_at(pages, layout.value_outliers + 48, 2), (std::vector<Slot>{{5 * 16 + 15, 0.5F}, {0, 0}}));
  EXPECT_EQ(pages.counters.value_outliers, 20U);
  EXPECT_EQ(pages.counters.dropped_values, 15U);
  Sequence read = Sequence::decode(pages, layer);
  EXPECT_EQ(read.value(19, 19), 20);
  EXPECT_EQ(read.value(16, 16), 0);
}

TEST(RecordSlots, NoneAskedForAreNotCounted) {
  Sequence sequence;
  sequence.key(4, 4) = 3;
  sequence.value(4, 4) = 3;
  const RecordPages pages = sequence.encode(unit_layer(0.01, 0.05), make_record_layout(4, 64, 64, 16, 0, 0));
  EXPECT_EQ(pages.counters.key_outliers + pages.counters.value_outliers, 0U);
  EXPECT_EQ(pages.counters.dropped_keys + pages.counters.dropped_values, 0U);
}

TEST(RecordSlots, ADeltaThatRoundsToZeroIsNoOutlier) {
  constexpr float kUpper = 0x1p-10F;
  const std::vector<float> lower(kDim, -kUpper), upper(kDim, kUpper);
  RecordLayer layer = unit_layer(0.01, 0);
  layer.keys = KeyNormaliser(lower, upper, 0.01);
  std::vector<float> centroids(16, -1.0F);
  centroids[15] = 1;
  layer.key = make_datatype(centroids);
  const auto expect_counted = [&](float x, std::uint64_t count) {
    Sequence sequence;
    sequence.key(0, 0) = x;
    const RecordPages pages = sequence.encode(layer, make_record_layout(4, 64, 64, 16, 4, 4));
    EXPECT_EQ(pages.counters.key_outliers, count) << x;
    EXPECT_EQ(get_u16(pages.records, pages.layout.key_outliers + 2), count);  // the bits of 2^-24
  };
  expect_counted(kUpper + 0x1p-24F, 1);
  expect_counted(kUpper + 0x1p-26F, 0);
}

TEST(RecordOf, SinksAreExactAndEmptyInTheRecord) {
  Sequence sequence;
  for (std::size_t i = 0; i < sequence.keys.size(); ++i) {
    sequence.keys[i] = std::sin(static_cast<float>(i)) * 9;
    sequence.values[i] = std::cos(static_cast<float>(i)) * 9;
  }
  const KvcalRecordLayout layout = make_record_layout(4, 64, 64, 16, 4, 4);
  const RecordLayer layer = unit_layer(0.01, 0.05, 16);
  const RecordPages pages = sequence.encode(layer, layout);
  const Sequence read = Sequence::decode(pages, layer);
  for (std::size_t i = 0; i < 16 * kDim; ++i) {
    ASSERT_EQ(read.keys[i], half_to_float(float_to_half(sequence.keys[i])));
    ASSERT_EQ(read.values[i], half_to_float(float_to_half(sequence.values[i])));
    ASSERT_EQ(pages.value_sinks[i], float_to_half(sequence.values[i]));
  }
  // The first page is all sinks; of the second, four tokens.
  for (std::size_t i = 0; i < layout.record_bytes; ++i) ASSERT_EQ(pages.records[i], 0) << i;
  const std::size_t affines = layout.record_bytes + layout.value_affines;
  EXPECT_NE(get_u16(pages.records, affines + 4 * 3), 0);
  for (std::size_t i = affines + 4 * 4; i < affines + 64; ++i) EXPECT_EQ(pages.records[i], 0);
}

TEST(RecordOf, NumbersBeyondFp16AreReplacedAndCounted) {
  Sequence sequence;
  sequence.key(0, 0) = NAN;  // a sink
  sequence.key(1, 0) = 65520;
  sequence.key(2, 0) = -INFINITY;
  sequence.key(3, 0) = -65505;
  sequence.key(4, 0) = 65504;
  sequence.key(5, 0) = std::nextafter(65504.0F, 1e6F);  // rounds to 65504, and is counted
  sequence.value(0, 3) = 1e9F;                          // a sink
  sequence.value(7, 1) = INFINITY;
  const RecordLayer layer = unit_layer(0.01, 0.05, 1);
  const RecordPages pages = sequence.encode(layer, make_record_layout(4, 64, 64, 16, 8, 8));
  EXPECT_EQ(pages.counters.not_finite, 3U);
  EXPECT_EQ(pages.counters.saturated, 4U);
  Sequence read = Sequence::decode(pages, layer);
  EXPECT_EQ(read.key(0, 0), 0);
  EXPECT_EQ(read.value(0, 3), 65504);
  EXPECT_EQ(read.key(1, 0), 65504);
  EXPECT_EQ(read.key(3, 0), -65504);
  EXPECT_EQ(read.key(4, 0), 65504);
  EXPECT_LE(std::abs(read.key(2, 0)), 0.0625F);
}

TEST(RecordOf, MinusZeroIsZero) {
  Sequence zeros, minus;
  minus.keys.assign(kTokens * kDim, -0.0F);
  minus.values = minus.keys;
  const RecordLayer layer = unit_layer(0.01, 0.05, 1);
  const KvcalRecordLayout layout = make_record_layout(4, 64, 64, 16, 4, 4);
  EXPECT_EQ(minus.encode(layer, layout).records, zeros.encode(layer, layout).records);
  EXPECT_EQ(minus.encode(layer, layout).key_sinks, zeros.encode(layer, layout).key_sinks);
}

TEST(RecordOf, ADeltaBeyondFp16IsSaturatedAndCounted) {
  // Thresholds 40000 and 60000: scale 10000, zero 50000, which is 49984 in fp16. The lowest code reads as
  // 49984 - 9375 = 40609, in fp16 40608; -30000 lies 70608 below.
  RecordLayer layer = unit_layer(0, 0);
  const std::vector<float> lower(kDim, 40000.0F), upper(kDim, 60000.0F);
  layer.keys = KeyNormaliser(lower, upper, 0.01);
  Sequence sequence;
  sequence.keys.assign(kTokens * kDim, 50000.0F);
  sequence.key(3, 3) = -30000;
  const RecordPages pages = sequence.encode(layer, make_record_layout(4, 64, 64, 16, 4, 0));
  EXPECT_EQ(slots_at(pages, pages.layout.key_outliers, 1), (std::vector<Slot>{{3 * 64 + 3, -65504}}));
  EXPECT_EQ(pages.counters.saturated, 1U);
  EXPECT_EQ(Sequence::decode(pages, layer).key(3, 3), 40608 - 65504);
}

TEST(RecordLayout, OfFourBitsAndPagesOf64) {
  // 1 % of 128 channels: 20.48 outliers a tile of keys, 20.48 + 4.53 in eights: 32; 2 of each token's values,
  // 16 a strip, 16 + 4 = 20.
  EXPECT_EQ(default_key_slots(0.01, 128), 32U);
  EXPECT_EQ(default_value_slots(0.01, 128, 64), 20U);
  EXPECT_EQ(default_value_slots(0.01, 128, 16), 8U);  // 4 + 2 = 6
  EXPECT_EQ(default_key_slots(0, 128) + default_value_slots(0, 128, 64), 0U);
  EXPECT_EQ(default_key_slots(0.3, 256), 64U);
  const KvcalRecordLayout layout = make_record_layout(4, 128, 128, 64, 32, 20);
  EXPECT_EQ(layout.value_codes, 4096U);
  EXPECT_EQ(layout.value_affines, 8192U);
  EXPECT_EQ(layout.key_outliers, 8448U);    // + 64 * 4
  EXPECT_EQ(layout.value_outliers, 8960U);  // + 4 * 32 * 4
  EXPECT_EQ(layout.record_bytes, 9600U);    // + 8 * 20 * 4: 4.69 bits a number
  EXPECT_EQ(make_record_layout(4, 128, 128, 64, 0, 0).record_bytes, 8448U);  // 4.125
  EXPECT_EQ(make_record_layout(3, 128, 128, 64, 0, 0).record_bytes, 6400U);  // 3.125
  EXPECT_EQ(make_record_layout(2, 128, 128, 64, 0, 0).record_bytes, 4352U);  // 2.125
}

TEST(RecordLayout, NamesWhatIsOutOfRange) {
  const auto message = [](std::int64_t bits, std::int64_t dim, std::int64_t page,
                          std::int64_t slots) -> std::string {
    try {
      (void)make_record_layout(bits, 64, dim, page, 4, slots);
    } catch (const base::InvalidInput& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(4, 64, 16, 64), "");
  EXPECT_NE(message(5, 64, 16, 4).find("bits is 5"), std::string::npos);
  EXPECT_NE(message(4, 96, 16, 4).find("value_dim is 96"), std::string::npos);
  EXPECT_NE(message(4, 64, 32, 4).find("page_tokens is 32; it can be 16 or 64"), std::string::npos);
  EXPECT_NE(message(4, 64, 16, 6).find("value_slots is 6"), std::string::npos);
  EXPECT_NE(message(4, 64, 16, 68).find("value_slots is 68"), std::string::npos);
  EXPECT_NE(message(4, 64, 16, -4).find("value_slots: the value -4"), std::string::npos);
}

TEST(RecordOf, WhatDisagreesIsRefused) {
  const RecordLayer layer = unit_layer(0.01, 0.05, 1);
  const KvcalRecordLayout layout = make_record_layout(4, 64, 64, 16, 4, 4);
  Sequence sequence;
  sequence.key(3, 3) = 4;
  const RecordPages whole = sequence.encode(layer, layout);
  const auto expect_refused = [&](const std::function<void(RecordPages&)>& damage) {
    RecordPages pages = whole;
    damage(pages);
    std::vector<float> keys(kTokens * kDim), values(kTokens * kDim);
    EXPECT_THROW(decode_records(pages, layer, keys, values), base::InvalidInput);
  };
  expect_refused([](RecordPages& pages) { pages.records.pop_back(); });
  expect_refused([](RecordPages& pages) { pages.key_sinks.pop_back(); });
  expect_refused([](RecordPages& pages) { pages.value_sinks.pop_back(); });
  expect_refused([](RecordPages& pages) { pages.tokens = 21; });
  expect_refused([](RecordPages& pages) { pages.tokens = SIZE_MAX; });
  expect_refused([](RecordPages& pages) { pages.kv_heads = 2; });
  expect_refused([](RecordPages& pages) { pages.sinks = 0; });
  expect_refused([](RecordPages& pages) { pages.layout.key_bits = 3; });
  expect_refused([](RecordPages& pages) { pages.layout.page_tokens = 0; });
  expect_refused([](RecordPages& pages) { pages.layout.value_codes -= 4; });
  expect_refused([](RecordPages& pages) { put_u16(pages.records, pages.layout.key_outliers, 16 * 64); });
  expect_refused([](RecordPages& pages) { put_u16(pages.records, pages.layout.key_outliers + 2, 0x7c00); });
  expect_refused([](RecordPages& pages) {
    put_u16(pages.records, pages.layout.value_outliers, 256);
    put_u16(pages.records, pages.layout.value_outliers + 2, 1);
  });
  expect_refused([](RecordPages& pages) { put_u16(pages.records, pages.layout.value_affines, 0x7e00); });

  const auto encode = [&](std::size_t keys, std::size_t values, const RecordLayer& one) {
    (void)encode_records(std::vector<float>(keys), std::vector<float>(values), one, layout);
  };
  EXPECT_THROW(encode(64, 128, layer), base::InvalidInput);
  EXPECT_THROW(encode(65, 65, layer), base::InvalidInput);
  EXPECT_THROW(encode(64, 64, unit_layer(0, 0, 17)), base::InvalidInput);
  EXPECT_THROW(encode(64, 64, unit_layer(0, 0.5)), base::WrongUsage);
  RecordLayer two_heads = layer;
  two_heads.kv_heads = 2;
  EXPECT_THROW(encode(128, 128, two_heads), base::InvalidInput);
  two_heads.kv_heads = 0;
  EXPECT_THROW(encode(0, 0, two_heads), base::InvalidInput);
  EXPECT_EQ(encode_records({}, {}, layer, layout).bytes(), 0U);
}

}  // namespace
}  // namespace kvcal::codec
