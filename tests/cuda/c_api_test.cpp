// The C API with what it must refuse: each a status and a sentence that says which argument, and nothing is written. What it
// can refuse only in part: the rest of the work is done, and no byte beside it is touched.
#include <gtest/gtest.h>

#include <climits>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <thread>

#include "cuda/batch.h"
#include "cuda/kernels/flat_reader.h"

namespace kvcal::codec {
namespace {

const CacheShape kShape{.bits = 4, .outliers = 0.02, .sinks = 2};

void expect_says(std::string_view function, const std::string& part) {
  const std::string said = kvcal_last_error();
  EXPECT_EQ(said.rfind(std::string(function) + ": ", 0), 0U) << said;
  EXPECT_NE(said.find(part), std::string::npos) << "'" << said << "' does not say '" << part << "'";
}

/// A number that is no enumerator, as C code can pass one.
template <typename Enum>
Enum no_enumerator(int number) {
  Enum result;
  static_assert(sizeof(result) == sizeof(number));
  std::memcpy(&result, &number, sizeof(result));
  return result;
}

template <typename T>
T* off_by(T* pointer, std::size_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(pointer) + bytes);
}

/// An argument made wrong, and what the sentence must name.
struct Spoiled {
  std::string says;
  std::function<void(Arguments&)> spoil;
};

/// What both functions take.
std::vector<Spoiled> spoiled_caches() {
  std::vector<Spoiled> all{
      {"codebook is null", [](Arguments& a) { a.codebook = nullptr; }},
      {"layer 1", [](Arguments& a) { a.layer = 1; }},
      {"layer 4294967295", [](Arguments& a) { a.layer = UINT32_MAX; }},
      {"version 4", [](Arguments& a) { a.cache.layout.version = 4; }},
      {"version 0", [](Arguments& a) { a.cache.layout = {}; }},
      {"cache.layout: key_bits is 5", [](Arguments& a) { a.cache.layout.key_bits = 5; }},
      {"cache.layout: key_dim is 96", [](Arguments& a) { a.cache.layout.key_dim = 96; }},
      {"cache.layout: value_dim is 0", [](Arguments& a) { a.cache.layout.value_dim = 0; }},
      {"cache.layout: page_tokens is 32", [](Arguments& a) { a.cache.layout.page_tokens = 32; }},
      {"cache.layout: key_slots is 68", [](Arguments& a) { a.cache.layout.key_slots = 68; }},
      {"cache.layout: value_slots is 3", [](Arguments& a) { a.cache.layout.value_slots = 3; }},
      {"cache.layout: value_rotation_block is 48",
       [](Arguments& a) { a.cache.layout.value_rotation_block = 48; }},
      {"values turned in blocks of 64", [](Arguments& a) { a.cache.layout.value_rotation_block = 64; }},
      {"cache.records is null", [](Arguments& a) { a.cache.records = nullptr; }},
      {"cache.records", [](Arguments& a) { a.cache.records = off_by(a.cache.records, 8); }},
      {"cache.pages", [](Arguments& a) { a.cache.pages = std::uint64_t{1} << 60; }},
      {"cache.pages", [](Arguments& a) { a.cache.pages = UINT64_MAX; }},
      {"cache.counters is null", [](Arguments& a) { a.cache.counters = nullptr; }},
      {"cache.counters", [](Arguments& a) { a.cache.counters = off_by(a.cache.counters, 4); }},
      {"key_sinks", [](Arguments& a) { a.cache.key_sinks = nullptr; }},
      {"value_sinks", [](Arguments& a) { a.cache.value_sinks = nullptr; }},
      {"key_sinks", [](Arguments& a) { a.cache.key_sinks = off_by(a.cache.key_sinks, 1); }},
      {"value_sinks", [](Arguments& a) { a.cache.value_sinks = off_by(a.cache.value_sinks, 1); }},
      {"cache.sink_slots", [](Arguments& a) { a.cache.sink_slots = std::uint64_t{1} << 60; }},
      {"table.pages is null", [](Arguments& a) { a.table.pages = nullptr; }},
      {"table.pages", [](Arguments& a) { a.table.pages = off_by(a.table.pages, 2); }},
      {"table.sink_slots", [](Arguments& a) { a.table.sink_slots = off_by(a.table.sink_slots, 1); }},
      {"2147483648 sequences", [](Arguments& a) { a.table.sequences = 1U << 31; }},
      {"2147483648 pages", [](Arguments& a) { a.table.max_pages = 1U << 31; }},
      {"stream", [](Arguments& a) { a.stream = &a; }}};
  // Offsets that are not those of the sizes; layouts, right in themselves, for another layer.
  for (std::uint32_t KvcalRecordLayout::*offset :
       {&KvcalRecordLayout::value_codes, &KvcalRecordLayout::value_affines, &KvcalRecordLayout::key_outliers,
        &KvcalRecordLayout::value_outliers, &KvcalRecordLayout::record_bytes}) {
    for (const std::uint32_t change : {128U, 0x80000000U})
      all.push_back({"cache.layout", [=](Arguments& a) { a.cache.layout.*offset ^= change; }});
  }
  for (const CacheShape& other :
       {CacheShape{.bits = 3}, CacheShape{.key_dim = 128}, CacheShape{.value_dim = 256}}) {
    const KvcalRecordLayout layout = Batch(other, {1}, 1).layout;
    all.push_back({"cache.layout is for", [=](Arguments& a) { a.cache.layout = layout; }});
  }
  return all;
}

/// A tensor's own arguments. get: of keys or of values.
template <typename Tensor, typename Get>
void add_tensor(std::vector<Spoiled>& all, const std::string& name, const Get& get,
                const std::vector<std::pair<std::string, std::int64_t Tensor::*>>& strides) {
  const auto add = [&](const std::string& says, const auto& spoil) {
    all.push_back({name + says, [=](Arguments& a) { spoil(get(a)); }});
  };
  add(".data is not aligned", [](Tensor& t) { t.data = off_by(t.data, 8); });
  for (const int type : {3, -1, INT_MAX})
    add(".type is", [=](Tensor& t) { t.type = no_enumerator<KvcalType>(type); });
  for (const auto& [stride, field] : strides) {
    for (const std::int64_t wrong :
         {std::int64_t{-8}, std::int64_t{4}, std::int64_t{129}, std::int64_t{1} << 62, INT64_MIN, INT64_MAX})
      add("." + stride, [wrong, at = field](Tensor& t) { t.*at = wrong; });
  }
}

void expect_refused(Batch& batch, const std::vector<Spoiled>& all, std::string_view function,
                    KvcalStatus (Arguments::*call)() const) {
  const std::vector<std::uint8_t> records = batch.records->bytes(), read = batch.read_keys->bytes();
  for (const Spoiled& one : all) {
    Arguments arguments = batch.arguments();
    one.spoil(arguments);
    EXPECT_EQ((arguments.*call)(), KVCAL_INVALID_ARGUMENT) << one.says;
    expect_says(function, one.says);
  }
  EXPECT_EQ(batch.records->bytes(), records);
  EXPECT_EQ(batch.read_keys->bytes(), read);
  EXPECT_EQ(batch.counters.refused, 0U);
}

TEST(CApi, AppendRefusesEachArgumentByItsName) {
  Batch batch(kShape, {20, 5, 17}, 3);
  std::vector<Spoiled> all = spoiled_caches();
  for (const Spoiled& one : std::vector<Spoiled>{
           {"tokens.starts", [](Arguments& a) { a.tokens.starts = nullptr; }},
           {"tokens.lengths", [](Arguments& a) { a.tokens.lengths = nullptr; }},
           {"tokens.starts", [](Arguments& a) { a.tokens.starts = off_by(a.tokens.starts, 2); }},
           {"tokens.lengths", [](Arguments& a) { a.tokens.lengths = off_by(a.tokens.lengths, 3); }},
           {"tokens.keys.data and tokens.values.data are null",
            [](Arguments& a) { a.tokens.keys.data = a.tokens.values.data = nullptr; }},
           {"tokens.rows is -1", [](Arguments& a) { a.tokens.rows = -1; }},
           {"tokens.rows", [](Arguments& a) { a.tokens.rows = std::int64_t{1} << 40; }},
           {"tokens.rows", [](Arguments& a) { a.tokens.rows = INT64_MIN; }},
           {"tokens.max_new_tokens is 43", [](Arguments& a) { a.tokens.max_new_tokens = 43; }},
           {"tokens.max_new_tokens", [](Arguments& a) { a.tokens.max_new_tokens = UINT32_MAX; }}})
    all.push_back(one);
  const std::vector<std::pair<std::string, std::int64_t KvcalRows::*>> strides{
      {"row_stride", &KvcalRows::row_stride}, {"head_stride", &KvcalRows::head_stride}};
  add_tensor<KvcalRows>(
      all, "tokens.keys", [](Arguments& a) -> KvcalRows& { return a.tokens.keys; }, strides);
  add_tensor<KvcalRows>(
      all, "tokens.values", [](Arguments& a) -> KvcalRows& { return a.tokens.values; }, strides);
  expect_refused(batch, all, "kvcal_append", &Arguments::append);

  const Arguments a = batch.arguments();
  EXPECT_EQ(kvcal_append(a.codebook, 0, nullptr, &a.table, &a.tokens, nullptr), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_append", "cache is null");
  EXPECT_EQ(kvcal_append(a.codebook, 0, &a.cache, nullptr, &a.tokens, nullptr), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_append", "table is null");
  EXPECT_EQ(kvcal_append(a.codebook, 0, &a.cache, &a.table, nullptr, nullptr), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_append", "tokens is null");
}

TEST(CApi, DequantiseRefusesEachArgumentByItsName) {
  Batch batch(kShape, {20, 5, 17}, 3);
  std::vector<Spoiled> all = spoiled_caches();
  for (const Spoiled& one : std::vector<Spoiled>{
           {"range.lengths", [](Arguments& a) { a.range.lengths = nullptr; }},
           {"range.lengths", [](Arguments& a) { a.range.lengths = off_by(a.range.lengths, 2); }},
           {"range.targets", [](Arguments& a) { a.range.targets = off_by(a.range.lengths, 1); }},
           {"range: pages 1 to 4 of 3", [](Arguments& a) { a.range.first_page = 1; }},
           {"range: pages 0 to 4 of 3", [](Arguments& a) { a.range.pages = 4; }},
           {"range: pages 4294967295 to 8589934590",
            [](Arguments& a) { a.range.first_page = a.range.pages = UINT32_MAX; }},
           {"keys.data is null", [](Arguments& a) { a.keys.data = nullptr; }},
           {"values.data is null", [](Arguments& a) { a.values.data = nullptr; }},
           {"keys.page_stride", [](Arguments& a) { a.keys.pages = std::uint64_t{1} << 60; }},
           {"values.page_stride", [](Arguments& a) { a.values.pages = UINT64_MAX; }}})
    all.push_back(one);
  const std::vector<std::pair<std::string, std::int64_t KvcalPages::*>> strides{
      {"page_stride", &KvcalPages::page_stride},
      {"token_stride", &KvcalPages::token_stride},
      {"head_stride", &KvcalPages::head_stride}};
  add_tensor<KvcalPages>(
      all, "keys", [](Arguments& a) -> KvcalPages& { return a.keys; }, strides);
  add_tensor<KvcalPages>(
      all, "values", [](Arguments& a) -> KvcalPages& { return a.values; }, strides);
  expect_refused(batch, all, "kvcal_dequantise", &Arguments::dequantise);

  const Arguments a = batch.arguments();
  const auto call = [&](const KvcalCache* cache, const KvcalTable* table, const KvcalRange* range,
                        const KvcalPages* keys, const KvcalPages* values, const char* says) {
    EXPECT_EQ(kvcal_dequantise(a.codebook, 0, cache, table, range, keys, values, nullptr),
              KVCAL_INVALID_ARGUMENT);
    expect_says("kvcal_dequantise", says);
  };
  call(nullptr, &a.table, &a.range, &a.keys, &a.values, "cache is null");
  call(&a.cache, nullptr, &a.range, &a.keys, &a.values, "table is null");
  call(&a.cache, &a.table, nullptr, &a.keys, &a.values, "range is null");
  call(&a.cache, &a.table, &a.range, nullptr, nullptr, "keys and values are null");
}

TEST(CApi, WorkThatCannotBeCountedIsRefused) {
  // 2^30 pages of four tiles: more than a number of 32 bits counts, and than tokens are counted.
  Batch batch({.page_tokens = 64}, {20}, 1);
  Arguments a = batch.arguments();
  a.table.max_pages = a.range.pages = 1U << 30;
  EXPECT_EQ(a.dequantise(), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_dequantise", "parts of work");

  // Sequences, parts of each and heads, each in range, their product beyond 2^63.
  Batch wide({.kv_heads = 64}, {20}, 1);
  a = wide.arguments();
  a.table.sequences = INT32_MAX;
  a.table.max_pages = a.range.pages = 1U << 27;
  a.tokens.rows = a.tokens.max_new_tokens = INT32_MAX;
  EXPECT_EQ(a.dequantise(), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_dequantise", "2147483647 sequences");
  EXPECT_EQ(a.append(), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_append", "2147483647 sequences");
}

TEST(CApi, TheOtherFunctionsRefuseEachArgumentByItsName) {
  Batch batch(kShape, {5}, 1);
  Arguments a = batch.arguments();
  KvcalCodebook* opened = off_by(static_cast<KvcalCodebook*>(nullptr), 8);
  EXPECT_EQ(kvcal_codebook_open(nullptr, 256, KVCAL_DEVICE_CPU, &opened), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_codebook_open", "flat is null");
  EXPECT_EQ(opened, nullptr);
  const std::vector<std::byte>& flat = batch.codebook.flat;
  EXPECT_EQ(kvcal_codebook_open(flat.data(), flat.size(), KVCAL_DEVICE_CPU, nullptr), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_codebook_open", "codebook is null");
  EXPECT_EQ(kvcal_codebook_open(flat.data(), flat.size(), no_enumerator<KvcalDevice>(2), &opened),
            KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_codebook_open", "no device of the number 2");
  EXPECT_EQ(kvcal_device_status(no_enumerator<KvcalDevice>(-1)), KVCAL_INVALID_ARGUMENT);
  kvcal_codebook_close(nullptr);

  KvcalCodebookInfo info;
  EXPECT_EQ(kvcal_codebook_info(nullptr, &info), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_codebook_info", "codebook");
  EXPECT_EQ(kvcal_codebook_info(a.codebook, nullptr), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_codebook_info", "info");
  KvcalLayerInfo layer;
  EXPECT_EQ(kvcal_layer_info(nullptr, 0, &layer), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_layer_info", "codebook is null");
  EXPECT_EQ(kvcal_layer_info(a.codebook, 1, &layer), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_layer_info", "layer 1");
  EXPECT_EQ(kvcal_layer_info(a.codebook, 0, nullptr), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_layer_info", "info is null");

  KvcalRecordLayout layout{};
  const auto refused = [&](std::uint32_t of, std::uint32_t page_tokens, std::uint32_t key_slots,
                           std::uint32_t value_slots, const char* says) {
    EXPECT_EQ(kvcal_record_layout(a.codebook, of, page_tokens, key_slots, value_slots, &layout),
              KVCAL_INVALID_ARGUMENT);
    expect_says("kvcal_record_layout", says);
    EXPECT_EQ(layout.version, 0U);
  };
  for (const std::uint32_t tokens : {0U, 1U, 32U, 128U, UINT32_MAX})
    refused(0, tokens, KVCAL_DEFAULT_SLOTS, KVCAL_DEFAULT_SLOTS, "page_tokens");
  for (const std::uint32_t slots : {1U, 66U, 68U, UINT32_MAX - 3}) {
    refused(0, 16, slots, 0, "key_slots");
    refused(0, 16, 0, slots, "value_slots");
  }
  refused(1, 16, 0, 0, "layer 1");
  EXPECT_EQ(kvcal_record_layout(nullptr, 0, 16, 0, 0, &layout), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_record_layout", "codebook is null");
  EXPECT_EQ(kvcal_record_layout(a.codebook, 0, 16, 0, 0, nullptr), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_record_layout", "layout is null");

  KvcalCounters counters;
  EXPECT_EQ(kvcal_counters(nullptr, &a.cache, nullptr, &counters), KVCAL_INVALID_ARGUMENT);
  EXPECT_EQ(kvcal_counters(a.codebook, nullptr, nullptr, &counters), KVCAL_INVALID_ARGUMENT);
  EXPECT_EQ(kvcal_counters(a.codebook, &a.cache, nullptr, nullptr), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_counters", "counters");
  EXPECT_EQ(kvcal_counters(a.codebook, &a.cache, &a, &counters), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_counters", "stream");
  a.cache.counters = nullptr;
  EXPECT_EQ(kvcal_counters(a.codebook, &a.cache, nullptr, &counters), KVCAL_INVALID_ARGUMENT);
  expect_says("kvcal_counters", "cache.counters is null");
}

TEST(CApi, NoDeviceIsAStatus) {
  if (kvcal_device_status(KVCAL_DEVICE_CUDA) == KVCAL_OK) GTEST_SKIP() << "there is a CUDA device";
  EXPECT_EQ(kvcal_device_status(KVCAL_DEVICE_CPU), KVCAL_OK);
  EXPECT_EQ(kvcal_device_status(KVCAL_DEVICE_CUDA), KVCAL_NO_DEVICE);
  expect_says("kvcal_device_status", "CUDA");
  const std::vector<std::byte> flat = make_codebook(kShape).flat;
  KvcalCodebook* opened = nullptr;
  EXPECT_EQ(kvcal_codebook_open(flat.data(), flat.size(), KVCAL_DEVICE_CUDA, &opened), KVCAL_NO_DEVICE);
  expect_says("kvcal_codebook_open", "CUDA");
  EXPECT_EQ(opened, nullptr);
}

TEST(CApi, TheLastErrorIsTheThreadsOwnAndStays) {
  EXPECT_EQ(kvcal_device_status(no_enumerator<KvcalDevice>(3)), KVCAL_INVALID_ARGUMENT);
  const std::string said = kvcal_last_error();
  EXPECT_EQ(kvcal_device_status(KVCAL_DEVICE_CPU), KVCAL_OK);
  EXPECT_EQ(kvcal_last_error(), said);
  std::thread([] {
    EXPECT_STREQ(kvcal_last_error(), "");
    EXPECT_EQ(kvcal_codebook_info(nullptr, nullptr), KVCAL_INVALID_ARGUMENT);
    expect_says("kvcal_codebook_info", "null");
  }).join();
  EXPECT_EQ(kvcal_last_error(), said);
  EXPECT_EQ(kvcal_cuda_version(), std::uint32_t{KVCAL_CUDA_VERSION});
}

}  // namespace
}  // namespace kvcal::codec
