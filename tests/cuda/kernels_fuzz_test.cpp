// The kernels' own source on records, tables and lengths of random contents, in buffers of exactly their size: no step over an
// end, which AddressSanitizer sees, and what was not random comes out right. And each phase's lanes in the reverse order, which
// shows a race: the same bytes.
#include <gtest/gtest.h>

#include <climits>
#include <string>

#include "cuda/batch.h"
#include "cuda/kernels/codebook_handle.h"
#include "cuda/kernels/launch.h"

namespace kvcal::codec {
namespace {

std::string name_of(const testing::TestParamInfo<CacheShape>& info) {
  const CacheShape& s = info.param;
  return std::to_string(s.bits) + "bits_" + std::to_string(s.key_dim) + "and" + std::to_string(s.value_dim) +
         "_page" + std::to_string(s.page_tokens) +
         (s.value_rotation_block > 0 ? "_turned" + std::to_string(s.value_rotation_block) : "");
}

/// All that has a kernel; some with a value dimension of its own.
std::vector<CacheShape> all_shapes() {
  std::vector<CacheShape> shapes;
  for (const int bits : {2, 3, 4}) {
    for (const unsigned dim : {64U, 128U, 256U}) {
      for (const unsigned page_tokens : {16U, 64U}) {
        const unsigned other = dim == 64 ? 256 : dim / 2,
                       value_dim = page_tokens == 64 && bits == 3 ? other : dim;
        shapes.push_back({.bits = bits,
                          .key_dim = dim,
                          .value_dim = value_dim,
                          .page_tokens = page_tokens,
                          .outliers = 0.02,
                          .sinks = 3,
                          .key_slots = 64,
                          .value_slots = 64});
      }
    }
    shapes.push_back(shapes.back());
    shapes.back().value_rotation_block = bits == 3 ? 16 : 256;
  }
  return shapes;
}

class KernelsFuzz : public testing::TestWithParam<CacheShape> {};

TEST_P(KernelsFuzz, RandomRecordsAreReadWithinTheirBytes) {
  const CacheShape& shape = GetParam();
  for (const KvcalType type : {KVCAL_FLOAT16, KVCAL_BFLOAT16, KVCAL_FLOAT32}) {
    const auto seed = static_cast<unsigned>(type) + 10;
    PlacedBatch batch(shape, {2 * shape.page_tokens - 3, 1}, 2, seed, type);
    const std::vector<std::uint8_t> records = batch.records->bytes();
    const Arguments a = batch.arguments();
    EXPECT_EQ(a.dequantise(), KVCAL_OK) << kvcal_last_error();
    EXPECT_TRUE(batch.records->bytes() == records);
    // The page behind sequence 1's only token was not read: nothing was written to its place.
    const std::size_t bytes = batch.page_bytes(shape.key_dim);
    Buffer rubbish(4 * bytes, seed + 2);
    EXPECT_EQ(std::memcmp(batch.read_keys->data() + 3 * bytes, rubbish.data() + 3 * bytes, bytes), 0);
  }
}

/// Whether what was read of rows `past` to `tokens`, [page][token][head][dim], is what the CPU codec reads of the same rows;
/// outliers aside, for which pages of random contents have no room: those that it reads otherwise with slots than without.
void expect_rows(const Batch& batch, Buffer& read, std::size_t dim, const std::vector<float>& kept,
                 const std::vector<float>& coded, std::size_t past) {
  const std::size_t row = batch.shape.kv_heads * dim;
  std::vector<float> numbers(kept.size());
  std::memcpy(numbers.data(), read.data(), numbers.size() * 4);
  std::size_t compared = 0;
  for (std::size_t i = past * row; i < numbers.size(); ++i) {
    if (kept[i] != coded[i]) continue;
    ASSERT_EQ(numbers[i], kept[i]) << "token " << i / row << ", channel " << i % row;
    ++compared;
  }
  EXPECT_GT(compared, (numbers.size() - past * row) * 9 / 10);
}

TEST_P(KernelsFuzz, WhatIsAppendedBehindRandomRowsIsReadBack) {
  CacheShape shape = GetParam();
  // An outlier that finds no room changes all channels of a turned block.
  shape.outliers = shape.value_rotation_block > 0 ? 0 : 0.005;
  const std::size_t tokens = shape.page_tokens + 7;
  for (const std::size_t past :
       {std::size_t{1}, std::size_t{5}, std::size_t{shape.page_tokens} - 1, std::size_t{shape.page_tokens}}) {
    PlacedBatch batch(shape, {tokens}, 2, static_cast<unsigned>(past));
    // The same rows as the CPU codec stores them after others, with slots for all outliers and with none.
    RecordPages with = batch.expected(0, tokens);
    ASSERT_EQ(with.counters.dropped_keys + with.counters.dropped_values, 0U);
    std::vector<float> keys(batch.keys.size()), values(batch.values.size()), coded_keys = keys,
                                                                             coded_values = values;
    decode_records(with, batch.codebook.layer, keys, values, 1);
    CacheShape dense = shape;
    dense.key_slots = dense.value_slots = 0;
    Batch without(dense, {tokens}, 2, static_cast<unsigned>(past));
    decode_records(without.expected(0, tokens), batch.codebook.layer, coded_keys, coded_values, 1);

    Arguments a = batch.arguments();
    batch.lengths[0] = static_cast<std::int32_t>(past);
    batch.starts[0] += batch.lengths[0];
    ASSERT_EQ(a.append(), KVCAL_OK) << kvcal_last_error();
    ASSERT_EQ(a.dequantise(), KVCAL_OK) << kvcal_last_error();
    expect_rows(batch, *batch.read_keys, shape.key_dim, keys, coded_keys, past);
    expect_rows(batch, *batch.read_values, shape.value_dim, values, coded_values, past);
  }
}

TEST_P(KernelsFuzz, TheOrderOfLanesChangesNothing) {
  if (test_device() != KVCAL_DEVICE_CPU) GTEST_SKIP() << "the order is a device's own";
  const CacheShape& given = GetParam();
  // Slots for all outliers and for few of them.
  for (const unsigned slots : {64U, 4U}) {
    CacheShape shape = given;
    shape.key_slots = shape.value_slots = slots;
    std::vector<std::vector<std::uint8_t>> bytes[2];
    KvcalCounters counters[2];
    for (const bool reversed : {false, true}) {
      Batch batch(shape, {shape.page_tokens + 9, 21}, 2);
      const KvcalRows keys = batch.arguments().tokens.keys, values = batch.arguments().tokens.values;
      const Arguments c = batch.arguments();
      const CacheView cache{batch.layout,
                            batch.records->data(),
                            c.cache.pages,
                            static_cast<std::uint16_t*>(c.cache.key_sinks),
                            static_cast<std::uint16_t*>(c.cache.value_sinks),
                            c.cache.sink_slots,
                            &batch.counters};
      const TableView table{c.table.sequences, c.table.max_pages, c.table.pages, c.table.sink_slots};
      AppendArguments append{batch.opened->view(0),
                             cache,
                             table,
                             batch.starts.data(),
                             batch.lengths.data(),
                             c.tokens.max_new_tokens,
                             c.tokens.rows,
                             {keys.data, keys.type, keys.row_stride, keys.head_stride},
                             {values.data, values.type, values.row_stride, values.head_stride}};
      append_on_cpu(append, reversed);
      // Cut back to the middle of a tile, and on.
      batch.lengths = {7, 18};
      const std::vector<std::int32_t> starts{0, 9, 12};
      append.starts = starts.data();
      append_on_cpu(append, reversed);
      batch.ends = {16, 21};
      const auto view = [](const KvcalPages& p) {
        return PagesView{p.data, p.type, p.page_stride, p.token_stride, p.head_stride, p.pages};
      };
      dequantise_on_cpu({batch.opened->view(0), cache, table, batch.ends.data(), nullptr, 0, 2, view(c.keys),
                         view(c.values)},
                        reversed);
      for (const Buffer* buffer : {batch.records.get(), batch.key_sinks.get(), batch.value_sinks.get(),
                                   batch.read_keys.get(), batch.read_values.get()})
        bytes[reversed ? 1 : 0].push_back(buffer->bytes());
      counters[reversed ? 1 : 0] = batch.counters;
      EXPECT_EQ(batch.counters.refused, 0U);
    }
    EXPECT_TRUE(bytes[0] == bytes[1]);
    EXPECT_EQ(std::memcmp(&counters[0], &counters[1], sizeof(KvcalCounters)), 0);
    EXPECT_TRUE(slots > 4 || counters[0].dropped_keys > 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, KernelsFuzz, testing::ValuesIn(all_shapes()), name_of);

TEST(KernelsFuzzOf, TablesLengthsAndStartsOfAnyContentsAreTakenOrRefused) {
  std::mt19937 random(5);
  const auto below = [&](unsigned n) { return static_cast<unsigned>(random() % n); };
  // Mostly a number that is in range, else one that is not, or just so.
  const auto number = [&](std::int32_t in_range) {
    const std::int32_t wrong[] = {-1,      in_range, in_range + 1,
                                  INT_MAX, INT_MIN,  static_cast<std::int32_t>(random())};
    return below(8) > 0 ? static_cast<std::int32_t>(below(static_cast<unsigned>(in_range))) : wrong[below(6)];
  };
  int statuses[4] = {};
  for (const CacheShape& shape :
       {CacheShape{.bits = 2, .kv_heads = 1, .outliers = 0.05, .sinks = 2, .key_slots = 4},
        CacheShape{.bits = 3, .page_tokens = 64, .sinks = 16},
        CacheShape{.bits = 4, .key_dim = 128, .sinks = 0}}) {
    PlacedBatch batch(shape, {9, 20, 3}, 3);
    const Arguments right = batch.arguments();
    std::vector<std::int32_t> targets(9);
    for (int i = 0; i < 500; ++i) {
      std::ranges::generate(batch.pages, [&] { return number(10); });
      std::ranges::generate(batch.sink_slots, [&] { return number(3); });
      std::ranges::generate(batch.lengths, [&] { return number(50); });
      std::ranges::generate(batch.ends, [&] { return number(50); });
      std::ranges::generate(batch.starts, [&] { return number(33); });
      if (below(2) > 0) std::ranges::sort(batch.starts);
      std::ranges::generate(targets, [&] { return number(9); });
      Arguments a = right;
      a.tokens.rows = 32;
      a.tokens.max_new_tokens = below(34);
      a.range = {below(4), below(4), batch.ends.data(), below(2) > 0 ? targets.data() : nullptr};
      if (below(4) == 0) a.table.sink_slots = nullptr;
      for (const auto call : {&Arguments::append, &Arguments::dequantise}) {
        const std::uint64_t refused = batch.counters.refused;
        const KvcalStatus status = (a.*call)();
        ASSERT_TRUE(status == KVCAL_OK || status == KVCAL_INVALID_ARGUMENT || status == KVCAL_INVALID_DATA);
        ASSERT_EQ(batch.counters.refused > refused, status == KVCAL_INVALID_DATA) << kvcal_last_error();
        ++statuses[status];
      }
    }
  }
  for (const int status : {KVCAL_OK, KVCAL_INVALID_ARGUMENT, KVCAL_INVALID_DATA})
    EXPECT_GT(statuses[status], 150);
}

}  // namespace
}  // namespace kvcal::codec
