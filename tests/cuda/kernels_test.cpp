// The kernels' own source, lane by lane on the CPU, or with KVCAL_TEST_DEVICE=cuda (test_memory.h) on a device: what it writes
// is, byte for byte, what the CPU record codec writes, and what it reads back, bit for bit, what that reads.
#include <gtest/gtest.h>

#include <bit>

#include "cuda/kernels/float16.h"
#include "cuda/paged_cache.h"

namespace kvcal::codec {
namespace {

NewTokens some_tokens(const CacheShape& shape, std::size_t tokens, unsigned seed) {
  return {some_numbers(tokens, std::size_t{shape.kv_heads} * shape.key_dim, seed),
          some_numbers(tokens, std::size_t{shape.kv_heads} * shape.value_dim, seed + 1000), tokens};
}

/// Rows first to last of a sequence.
NewTokens part_of(const NewTokens& whole, std::size_t first, std::size_t last) {
  const auto cut = [&](const std::vector<float>& x) {
    const std::size_t row = whole.tokens == 0 ? 0 : x.size() / whole.tokens;
    return std::vector<float>(x.begin() + static_cast<std::ptrdiff_t>(first * row),
                              x.begin() + static_cast<std::ptrdiff_t>(last * row));
  };
  return {cut(whole.keys), cut(whole.values), last - first};
}

std::vector<float> rounded_to(const std::vector<float>& numbers, KvcalType type) {
  return TypedNumbers(numbers, type).numbers();
}

RecordPages expected_pages(const PagedCache& cache, const NewTokens& tokens) {
  return encode_records(tokens.keys, tokens.values, cache.codebook().layer, cache.layout(), 1);
}

void expect_records(const PagedCache& cache, std::uint32_t sequence, const RecordPages& expected) {
  for (std::size_t page = 0; page < expected.pages(); ++page) {
    for (std::size_t head = 0; head < cache.shape().kv_heads; ++head) {
      const std::size_t bytes = cache.layout().record_bytes,
                        at = (page * cache.shape().kv_heads + head) * bytes;
      const std::vector<std::uint8_t> record(
          expected.records.begin() + static_cast<std::ptrdiff_t>(at),
          expected.records.begin() + static_cast<std::ptrdiff_t>(at + bytes));
      ASSERT_EQ(cache.record(sequence, page, head), record)
          << "sequence " << sequence << ", page " << page << ", head " << head;
    }
  }
  EXPECT_EQ(cache.sinks(sequence, true), expected.key_sinks);
  EXPECT_EQ(cache.sinks(sequence, false), expected.value_sinks);
}

void expect_counters(const KvcalCounters& actual, const std::vector<RecordPages>& expected) {
  KvcalCounters sum{};
  for (const RecordPages& pages : expected) {
    sum.key_outliers += pages.counters.key_outliers;
    sum.value_outliers += pages.counters.value_outliers;
    sum.dropped_keys += pages.counters.dropped_keys;
    sum.dropped_values += pages.counters.dropped_values;
    sum.not_finite += pages.counters.not_finite;
    sum.saturated += pages.counters.saturated;
  }
  EXPECT_EQ(actual.key_outliers, sum.key_outliers);
  EXPECT_EQ(actual.value_outliers, sum.value_outliers);
  EXPECT_EQ(actual.dropped_keys, sum.dropped_keys);
  EXPECT_EQ(actual.dropped_values, sum.dropped_values);
  EXPECT_EQ(actual.not_finite, sum.not_finite);
  EXPECT_EQ(actual.saturated, sum.saturated);
  EXPECT_EQ(actual.refused, 0U);
}

std::string name_of(const testing::TestParamInfo<CacheShape>& info) {
  const CacheShape& s = info.param;
  std::string name =
      std::to_string(s.bits) + "bits_" + std::to_string(s.kv_heads) + "x" + std::to_string(s.key_dim);
  if (s.value_dim != s.key_dim) name += "and" + std::to_string(s.value_dim);
  name += "_page" + std::to_string(s.page_tokens) + "_sinks" + std::to_string(s.sinks);
  if (s.value_rotation_block > 0) name += "_turned" + std::to_string(s.value_rotation_block);
  if (s.value_bits) name += "_values" + std::to_string(*s.value_bits) + "bits";
  if (s.outliers == 0) return name + "_dense";
  name += "_" + std::to_string(static_cast<int>(s.outliers * 1000)) + "permille";
  return s.key_slots == KVCAL_DEFAULT_SLOTS
             ? name
             : name + "_slots" + std::to_string(s.key_slots) + "and" + std::to_string(s.value_slots);
}

class Kernels : public testing::TestWithParam<CacheShape> {};

TEST_P(Kernels, AppendWritesWhatTheCpuCodecWrites) {
  const CacheShape& shape = GetParam();
  // Ends inside a page and a tile, at a page's end, after the sinks, before them.
  const std::vector<std::size_t> lengths{3 * shape.page_tokens + 21, shape.page_tokens, shape.sinks, 1, 0};
  PagedCache cache(shape, static_cast<std::uint32_t>(lengths.size()), 5);
  std::vector<NewTokens> prompts;
  std::vector<RecordPages> expected;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    prompts.push_back(some_tokens(shape, lengths[i], static_cast<unsigned>(i)));
    expected.push_back(expected_pages(cache, prompts.back()));
  }
  ASSERT_EQ(cache.append(prompts), KVCAL_OK) << kvcal_last_error();
  for (std::uint32_t i = 0; i < lengths.size(); ++i) expect_records(cache, i, expected[i]);
  expect_counters(cache.counters(), expected);
}

TEST_P(Kernels, TokenByTokenIsThePromptAtOnce) {
  const CacheShape& shape = GetParam();
  const std::size_t tokens = shape.page_tokens + 19;
  const std::vector<NewTokens> whole{some_tokens(shape, tokens, 1), some_tokens(shape, tokens, 2)};
  PagedCache cache(shape, 2, 3);
  for (std::size_t i = 0; i < tokens; ++i)
    ASSERT_EQ(cache.append({part_of(whole[0], i, i + 1), part_of(whole[1], i, i + 1)}), KVCAL_OK)
        << kvcal_last_error();
  const std::vector<RecordPages> expected{expected_pages(cache, whole[0]), expected_pages(cache, whole[1])};
  for (std::uint32_t i = 0; i < 2; ++i) expect_records(cache, i, expected[i]);
  expect_counters(cache.counters(), expected);
}

TEST_P(Kernels, WhatIsReadIsWhatTheCpuCodecReads) {
  const CacheShape& shape = GetParam();
  PagedCache cache(shape, 2, 3);
  const std::vector<NewTokens> whole{some_tokens(shape, 2 * shape.page_tokens + 5, 1),
                                     some_tokens(shape, 7, 2)};
  ASSERT_EQ(cache.append(whole), KVCAL_OK) << kvcal_last_error();
  for (std::uint32_t i = 0; i < 2; ++i) {
    std::vector<float> keys(whole[i].keys.size()), values(whole[i].values.size());
    decode_records(expected_pages(cache, whole[i]), cache.codebook().layer, keys, values, 1);
    for (const KvcalType type : {KVCAL_FLOAT16, KVCAL_BFLOAT16, KVCAL_FLOAT32}) {
      const NewTokens read = cache.read(i, type);
      EXPECT_EQ(read.keys, rounded_to(keys, type)) << type;
      EXPECT_EQ(read.values, rounded_to(values, type)) << type;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Kernels,
    testing::Values(
        CacheShape{.bits = 2}, CacheShape{.bits = 3}, CacheShape{.bits = 4},
        CacheShape{.bits = 2, .kv_heads = 1, .key_dim = 128, .value_dim = 128, .page_tokens = 64},
        CacheShape{.bits = 3, .kv_heads = 8, .key_dim = 128, .value_dim = 128, .page_tokens = 64, .sinks = 4},
        CacheShape{.bits = 4, .kv_heads = 4, .key_dim = 128, .value_dim = 128, .page_tokens = 64},
        CacheShape{.bits = 2, .key_dim = 256, .value_dim = 256, .page_tokens = 64, .sinks = 0},
        CacheShape{.bits = 3, .kv_heads = 1, .key_dim = 256, .value_dim = 256, .sinks = 16},
        CacheShape{.bits = 4, .key_dim = 256, .value_dim = 256, .page_tokens = 64},
        CacheShape{.bits = 3, .kv_heads = 32, .page_tokens = 64},
        CacheShape{.bits = 4, .key_dim = 128, .value_dim = 64},
        CacheShape{.bits = 3, .key_dim = 64, .value_dim = 256, .page_tokens = 64},
        CacheShape{.bits = 2, .page_tokens = 64, .outliers = 0},
        CacheShape{.bits = 3, .key_dim = 128, .value_dim = 128, .outliers = 0},
        CacheShape{.bits = 4, .key_dim = 256, .value_dim = 256, .outliers = 0},
        // Slots overflow.
        CacheShape{.bits = 3, .page_tokens = 64, .outliers = 0.05, .key_slots = 4, .value_slots = 8},
        CacheShape{
            .bits = 4, .key_dim = 128, .value_dim = 128, .outliers = 0.1, .key_slots = 36, .value_slots = 40},
        // Thresholds without slots.
        CacheShape{.bits = 2, .page_tokens = 64, .outliers = 0.02, .key_slots = 0, .value_slots = 0},
        // As a recipe has them: a layer's keys and values by different datatypes.
        CacheShape{.bits = 2,
                   .key_dim = 128,
                   .value_dim = 128,
                   .outliers = 0,
                   .value_bits = 4,
                   .value_outliers = 0.01},
        CacheShape{.bits = 4, .page_tokens = 64, .outliers = 0.02, .value_bits = 3, .value_outliers = 0},
        CacheShape{.bits = 3, .key_dim = 64, .value_dim = 256, .page_tokens = 64, .value_bits = 2},
        // Values turned: within a lane's channels, within some lanes', over a whole head.
        CacheShape{.bits = 2, .value_rotation_block = 1}, CacheShape{.bits = 4, .value_rotation_block = 2},
        CacheShape{.bits = 3, .page_tokens = 64, .value_rotation_block = 64},
        CacheShape{.bits = 3, .key_dim = 128, .value_dim = 128, .sinks = 4, .value_rotation_block = 16},
        CacheShape{.bits = 4, .kv_heads = 3, .key_dim = 128, .value_dim = 128, .value_rotation_block = 128},
        CacheShape{.bits = 2, .key_dim = 256, .value_dim = 256, .value_rotation_block = 8},
        CacheShape{.bits = 3,
                   .key_dim = 64,
                   .value_dim = 256,
                   .page_tokens = 64,
                   .outliers = 0.05,
                   .sinks = 16,
                   .value_slots = 8,
                   .value_rotation_block = 256},
        CacheShape{.bits = 4, .outliers = 0, .value_rotation_block = 64}),
    name_of);

TEST(KernelsOf, TheDeviceThatTestsAskForIsThere) {
  ASSERT_EQ(kvcal_device_status(test_device()), KVCAL_OK) << kvcal_last_error();
}

TEST(KernelsOf, InputsOfEveryTypeAreTakenAsTheyAre) {
  const CacheShape shape{.bits = 3, .key_dim = 128, .value_dim = 128};
  for (const KvcalType type : {KVCAL_FLOAT16, KVCAL_BFLOAT16, KVCAL_FLOAT32}) {
    PagedCache cache(shape, 1, 3);
    NewTokens tokens = some_tokens(shape, 40, 5);
    ASSERT_EQ(cache.append({tokens}, type), KVCAL_OK) << kvcal_last_error();
    tokens.keys = rounded_to(tokens.keys, type);
    tokens.values = rounded_to(tokens.values, type);
    expect_records(cache, 0, expected_pages(cache, tokens));
  }
}

TEST(KernelsOf, WhatIsNotFiniteOrTooLargeIsCountedAndStored) {
  const CacheShape shape{.bits = 4};
  PagedCache cache(shape, 1, 2);
  NewTokens tokens = some_tokens(shape, 20, 5);
  const float nan = std::nanf(""), infinity = INFINITY;
  tokens.keys[3 * 128 + 5] = nan;
  tokens.keys[3 * 128 + 70] = -infinity;
  tokens.keys[0] = infinity;  // a sink
  tokens.keys[17 * 128 + 64] = 1e30F;
  tokens.values[9 * 128 + 1] = nan;
  tokens.values[9 * 128 + 2] = -70000;
  std::fill_n(tokens.values.begin() + 12 * 128, 64, nan);
  std::fill_n(tokens.values.begin() + 13 * 128, 128, -0.0F);
  ASSERT_EQ(cache.append({tokens}), KVCAL_OK) << kvcal_last_error();
  const RecordPages expected = expected_pages(cache, tokens);
  expect_records(cache, 0, expected);
  expect_counters(cache.counters(), {expected});
  EXPECT_EQ(cache.counters().not_finite, 3U + 1 + 64);
  EXPECT_EQ(cache.counters().saturated, 2U);
}

TEST(KernelsOf, WhatIsNotFiniteSpoilsNoTurnedBlock) {
  const CacheShape shape{.bits = 4, .value_rotation_block = 64};
  PagedCache cache(shape, 1, 2);
  NewTokens tokens = some_tokens(shape, 20, 5);
  tokens.values[0] = INFINITY;  // a sink
  tokens.values[9 * 128 + 1] = std::nanf("");
  std::fill_n(tokens.values.begin() + 12 * 128, 64, 60000.0F);  // 60000 * sqrt(64), then zeros
  ASSERT_EQ(cache.append({tokens}), KVCAL_OK) << kvcal_last_error();
  const RecordPages expected = expected_pages(cache, tokens);
  expect_records(cache, 0, expected);
  expect_counters(cache.counters(), {expected});
  EXPECT_EQ(cache.counters().not_finite, 2U);
  EXPECT_EQ(cache.counters().saturated, 1U);
}

TEST(KernelsOf, TurnedValuesComeBackAsTheyWere) {
  // A head of one number in each block: turned, it lies on all channels, and no code is far off.
  const CacheShape shape{.bits = 4, .key_dim = 128, .value_dim = 128, .value_rotation_block = 16};
  PagedCache cache(shape, 1, 2);
  NewTokens tokens = some_tokens(shape, 20, 5);
  for (std::size_t i = 0; i < tokens.values.size(); ++i) tokens.values[i] = i % 16 == 5 ? 4.0F : 0.0F;
  ASSERT_EQ(cache.append({tokens}), KVCAL_OK) << kvcal_last_error();
  // In the sink's fp16 a column of the matrix times 4 / sqrt(16).
  const std::vector<std::uint16_t> sinks = cache.sinks(0, false);
  for (unsigned c = 0; c < 128; ++c)
    EXPECT_EQ(half_to_float(sinks[c]), std::popcount(c & 5U) % 2 == 0 ? 1.0F : -1.0F) << c;
  const NewTokens read = cache.read(0, KVCAL_FLOAT32);
  for (std::size_t i = 0; i < read.values.size(); ++i)
    EXPECT_NEAR(read.values[i], tokens.values[i], i < 256 ? 0 : 0.5F) << i;
}

TEST(KernelsOf, ASequenceCanBeCutBackAndGoOn) {
  const CacheShape shape{.bits = 3, .page_tokens = 64};
  PagedCache cache(shape, 1, 2);
  const NewTokens first = some_tokens(shape, 90, 5), other = some_tokens(shape, 90, 6);
  ASSERT_EQ(cache.append({first}), KVCAL_OK);
  cache.lengths()[0] = 41;
  ASSERT_EQ(cache.append({part_of(other, 41, 90)}), KVCAL_OK);
  NewTokens joined = part_of(first, 0, 41);
  joined.tokens = 90;
  const NewTokens rest = part_of(other, 41, 90);
  joined.keys.insert(joined.keys.end(), rest.keys.begin(), rest.keys.end());
  joined.values.insert(joined.values.end(), rest.values.begin(), rest.values.end());
  expect_records(cache, 0, expected_pages(cache, joined));
}

}  // namespace
}  // namespace kvcal::codec
