// Pages, rows, lengths, targets and sink slots that are out of range, at the C API: what they belong to is left out, counted and
// told; the rest is done, and no byte beside it changes. Where test_memory.h says.
#include <gtest/gtest.h>

#include <climits>
#include <functional>
#include <string>

#include "cuda/batch.h"

namespace kvcal::codec {
namespace {

const CacheShape kShape{.bits = 3, .outliers = 0.02, .sinks = 2};

/// The bytes of all buffers, as they must be after a call.
struct Image {
  std::vector<std::uint8_t> records, key_sinks, value_sinks;

  explicit Image(const Batch& batch)
      : records(batch.records->bytes()),
        key_sinks(batch.key_sinks->bytes()),
        value_sinks(batch.value_sinks->bytes()) {}

  /// Pages `first_page` to last_page of a sequence as the CPU codec stores them; its sinks with page 0.
  void put(const Batch& batch, std::size_t sequence, const RecordPages& stored, std::size_t first_page,
           std::size_t last_page) {
    const KvcalRecordLayout& layout = batch.layout;
    const std::size_t heads = batch.shape.kv_heads,
                      written = layout.value_outliers +
                                layout.value_dim / KVCAL_STRIP_CHANNELS * layout.value_slots * 4;
    for (std::size_t page = first_page; page < std::min(last_page, stored.pages()); ++page) {
      for (std::size_t head = 0; head < heads; ++head) {
        const auto physical = static_cast<std::size_t>(batch.pages[sequence * batch.max_pages + page]);
        std::memcpy(records.data() + (physical * heads + head) * layout.record_bytes,
                    stored.records.data() + (page * heads + head) * layout.record_bytes, written);
      }
    }
    if (first_page > 0 || last_page == 0) return;
    const auto slot = static_cast<std::size_t>(batch.sink_slots[sequence]);
    for (const auto& [to, from] :
         {std::pair(&key_sinks, &stored.key_sinks), std::pair(&value_sinks, &stored.value_sinks)})
      std::memcpy(to->data() + slot * from->size() * 2, from->data(), from->size() * 2);
  }

  void expect(const Batch& batch) const {
    EXPECT_TRUE(batch.records->bytes() == records);
    EXPECT_TRUE(batch.key_sinks->bytes() == key_sinks);
    EXPECT_TRUE(batch.value_sinks->bytes() == value_sinks);
  }
};

void expect_refused(KvcalStatus status, const Arguments& arguments, std::uint64_t refused,
                    const std::string& says) {
  EXPECT_EQ(status, KVCAL_INVALID_DATA);
  if (arguments.device == KVCAL_DEVICE_CPU) {  // a device counts, and says no more
    EXPECT_EQ(kvcal_last_error(), says);
  }
  KvcalCounters counters{};
  EXPECT_EQ(arguments.read_counters(counters), KVCAL_INVALID_DATA);
  EXPECT_EQ(counters.refused, refused);
  EXPECT_EQ(std::memcmp(&counters, arguments.cache.counters, sizeof(counters)), 0);
}

std::string slot_is(std::int32_t slot) {
  return "table.sink_slots[1] is " + std::to_string(slot) + "; the cache has 3 sink slots";
}
std::string page_is(int page, std::int32_t number) {
  return "table.pages[1][" + std::to_string(page) + "] is " + std::to_string(number) +
         "; the cache has 10 pages";
}

/// What is wrong with sequence 1 of three, the one cause that is told, and which of its pages are stored all the same.
struct Wrong {
  std::string says;
  std::function<void(Batch&, Arguments&)> spoil;
  std::size_t stored_from = 0, stored_to = 0;
  std::uint64_t refused = 1;
};

constexpr const char* kOnePage = "sequence 1 needs page 1; max_pages is 1";

std::vector<Wrong> wrong_appends() {
  std::vector<Wrong> all;
  for (const std::int32_t page : {-1, 10, INT_MAX, INT_MIN}) {
    all.push_back({page_is(0, page), [=](Batch& b, Arguments&) { b.pages[3] = page; }, 1, 2});
    all.push_back({page_is(1, page), [=](Batch& b, Arguments&) { b.pages[4] = page; }, 0, 1});
  }
  // Both pages: the first is named.
  all.push_back({page_is(0, -1), [](Batch& b, Arguments&) { b.pages[3] = b.pages[4] = -1; }, 0, 0, 2});
  for (const std::int32_t slot : {-1, 3, INT_MAX, INT_MIN})  // the second page has no sinks
    all.push_back({slot_is(slot), [=](Batch& b, Arguments&) { b.sink_slots[1] = slot; }, 1, 2});
  for (const std::int32_t length : {-1, INT_MIN})
    all.push_back({"tokens.lengths[1] is " + std::to_string(length) + "; at least 0",
                   [=](Batch& b, Arguments&) { b.lengths[1] = length; }});
  // Beyond max_pages; 20 tokens lie in two pages.
  for (const std::int32_t length : {48, INT_MAX - 31, INT_MAX - 15})
    all.push_back({"sequence 1 needs page " + std::to_string(length / 16) + "; max_pages is 3",
                   [=](Batch& b, Arguments&) { b.lengths[1] = length; }, 0, 0, 2});
  all.push_back({kOnePage, [](Batch&, Arguments& a) { a.table.max_pages = 1; }});
  all.push_back({"sequence 1 brings 20 tokens; tokens.max_new_tokens is 17",
                 [](Batch&, Arguments& a) { a.tokens.max_new_tokens = 17; }});
  return all;
}

TEST(CApiData, AppendDoesTheRestOfTheBatch) {
  for (const Wrong& wrong : wrong_appends()) {
    SCOPED_TRACE(wrong.says);
    const bool one_page = wrong.says == kOnePage;
    // With max_pages 1 the table is [3][1]: its first three entries.
    PlacedBatch batch(kShape, {one_page ? 5U : 13U, 20, 16}, 3);
    const std::vector<RecordPages> stored{batch.expected(0, batch.ends[0]),
                                          batch.expected(batch.starts[1], batch.starts[2]),
                                          batch.expected(batch.starts[2], batch.starts[3])};
    Image image(batch);
    Arguments a = batch.arguments();
    if (one_page) {
      batch.pages = {1, 2, 3};
      a.table.pages = batch.pages.data();
      batch.max_pages = 1;
      image.put(batch, 1, stored[1], 0, 1);
    } else {
      image.put(batch, 1, stored[1], wrong.stored_from, wrong.stored_to);
    }
    image.put(batch, 0, stored[0], 0, 3);
    image.put(batch, 2, stored[2], 0, 3);
    wrong.spoil(batch, a);
    const KvcalStatus status = a.append();
    expect_refused(status, a, wrong.refused, "kvcal_append: " + wrong.says);
    image.expect(batch);
  }
}

TEST(CApiData, AppendLeavesOutRowsThatAreNotThere) {
  // The rows of the others must be there: 0 to 13 and, of as many as the case says, to 49.
  struct Starts {
    std::vector<std::int32_t> starts;
    std::vector<std::size_t> refused;  // sequences
    std::string says;
  };
  for (const Starts& given : std::vector<Starts>{
           {{0, 13, 10, 29}, {1}, "tokens.starts[2] is 10, less than tokens.starts[1], 13"},
           {{0, 13, 50, 49}, {1, 2}, "tokens.starts[2] is 50; tokens.rows is 49"},
           {{0, 13, INT_MAX, INT_MAX}, {1, 2}, "tokens.starts[2] is 2147483647; tokens.rows is 49"},
           {{-1, 13, 33, 49}, {0}, "tokens.starts[0] is -1; at least 0"},
           {{INT_MIN, INT_MAX, 33, 49}, {0, 1}, "tokens.starts[0] is -2147483648; at least 0"},
           {{-20, -10, -1, 0}, {0, 1, 2}, "tokens.starts[0] is -20; at least 0"},
           {{0, 13, 33, 50}, {2}, "tokens.starts[3] is 50; tokens.rows is 49"},
           {{49, 33, 13, 0}, {0, 1, 2}, "tokens.starts[1] is 33, less than tokens.starts[0], 49"}}) {
    SCOPED_TRACE(testing::PrintToString(given.starts));
    PlacedBatch batch(kShape, {13, 20, 16}, 3);
    Image image(batch);
    Arguments a = batch.arguments();
    a.tokens.starts = given.starts.data();
    for (std::size_t i = 0; i < 3; ++i) {
      if (std::ranges::find(given.refused, i) != given.refused.end()) continue;
      image.put(batch, i,
                batch.expected(static_cast<std::size_t>(given.starts[i]),
                               static_cast<std::size_t>(given.starts[i + 1])),
                0, 3);
    }
    const KvcalStatus status = a.append();
    expect_refused(status, a, given.refused.size(), "kvcal_append: " + given.says);
    image.expect(batch);
  }
}

TEST(CApiData, TokensWhereNoneMayComeAreRefused) {
  PlacedBatch batch(kShape, {13, 20}, 3);
  const Image image(batch);
  Arguments a = batch.arguments();
  a.tokens.max_new_tokens = 0;
  const KvcalStatus status = a.append();
  expect_refused(status, a, 2, "kvcal_append: sequence 0 brings 13 tokens; tokens.max_new_tokens is 0");
  image.expect(batch);
}

TEST(CApiData, OneTensorAloneIsRefusedAndCountedAsBothAre) {
  for (const bool keys : {true, false}) {
    PlacedBatch batch(kShape, {13, 20, 16}, 3);
    Arguments a = batch.arguments();
    ASSERT_EQ(a.append(), KVCAL_OK) << kvcal_last_error();
    batch.pages[3] = 10;
    batch.counters = {};
    KvcalStatus status = a.dequantise_one(keys);
    expect_refused(status, a, 1, "kvcal_dequantise: " + page_is(0, 10));
    (keys ? a.tokens.values : a.tokens.keys).data = nullptr;
    batch.counters = {};
    status = a.append();
    expect_refused(status, a, 1, "kvcal_append: " + page_is(0, 10));
  }
}

TEST(CApiData, WithoutSlotsAndTargetsTheCauseIsTheNumberOfTheSequence) {
  PlacedBatch batch(kShape, {13, 20}, 3);
  Arguments a = batch.arguments();
  a.table.sink_slots = nullptr;
  ASSERT_EQ(a.append(), KVCAL_OK) << kvcal_last_error();
  a.range.pages = 2;
  a.range.targets = nullptr;
  a.values.pages = 3;  // of 4; keys have room
  expect_refused(a.dequantise(), a, 1,
                 "kvcal_dequantise: range.targets is null, which puts page 1 of sequence 1 at 3; there is "
                 "room for 3 pages in values");
  a.cache.sink_slots = 1;
  batch.counters = {};
  expect_refused(a.append(), a, 1,
                 "kvcal_append: table.sink_slots is null, which gives sequence 1 slot 1; the cache has 1 "
                 "sink slots");
}

/// What is wrong with sequence 1 of three in a read of two pages each, the one cause that is told; entries of the target
/// table that stay as they were.
struct WrongRead {
  std::string says;
  std::function<void(Batch&, Arguments&, std::vector<std::int32_t>& targets)> spoil;
  std::vector<std::size_t> left_out;
  std::uint64_t refused = 1;
};

std::vector<WrongRead> wrong_reads() {
  using Targets = std::vector<std::int32_t>;
  std::vector<WrongRead> all;
  const auto target_is = [](std::int32_t target, int room, const std::string& where) {
    return "range.targets[1][1] is " + std::to_string(target) + "; there is room for " +
           std::to_string(room) + " pages in " + where;
  };
  for (const std::int32_t page : {-1, 10, INT_MAX, INT_MIN}) {
    all.push_back({page_is(0, page), [=](Batch& b, Arguments&, Targets&) { b.pages[3] = page; }, {2}});
    all.push_back({page_is(1, page), [=](Batch& b, Arguments&, Targets&) { b.pages[4] = page; }, {3}});
  }
  for (const std::int32_t target : {-1, 9, INT_MAX, INT_MIN})
    all.push_back(
        {target_is(target, 9, "keys"), [=](Batch&, Arguments&, Targets& t) { t[3] = target; }, {3}});
  for (const std::int32_t slot : {-1, 3, INT_MAX, INT_MIN})
    all.push_back({slot_is(slot), [=](Batch& b, Arguments&, Targets&) { b.sink_slots[1] = slot; }, {2}});
  for (const std::int32_t length : {-1, INT_MIN})
    all.push_back({"range.lengths[1] is " + std::to_string(length) + "; at least 0",
                   [=](Batch& b, Arguments&, Targets&) { b.ends[1] = length; },
                   {2, 3}});
  // Sequence 1's second page goes to page 8: room for it in one of both is room in neither.
  all.push_back(
      {target_is(8, 8, "keys"), [](Batch&, Arguments& a, Targets& t) { t[3] = 8, a.keys.pages = 8; }, {3}});
  all.push_back({target_is(8, 8, "values"),
                 [](Batch&, Arguments& a, Targets& t) { t[3] = 8, a.values.pages = 8; },
                 {3}});
  return all;
}

TEST(CApiData, DequantiseDoesTheRestOfTheBatch) {
  for (const WrongRead& wrong : wrong_reads()) {
    SCOPED_TRACE(wrong.says);
    PlacedBatch batch(kShape, {13, 20, 16}, 3);
    Arguments a = batch.arguments();
    ASSERT_EQ(a.append(), KVCAL_OK) << kvcal_last_error();
    std::vector<std::int32_t> targets{0, 1, 2, 3, 4, 5};
    a.range.pages = 2;
    a.range.targets = targets.data();
    const std::size_t page_bytes = batch.page_bytes(64);
    const std::vector<std::uint8_t> rubbish[] = {batch.read_keys->bytes(), batch.read_values->bytes()};
    ASSERT_EQ(a.dequantise(), KVCAL_OK) << kvcal_last_error();
    std::vector<std::uint8_t> image[] = {batch.read_keys->bytes(), batch.read_values->bytes()};
    for (std::size_t which = 0; which < 2; ++which) {
      for (const std::size_t page : wrong.left_out)
        std::memcpy(&image[which][page * page_bytes], &rubbish[which][page * page_bytes], page_bytes);
      // The pages behind a sequence's last token, and those that are nobody's, were left alone.
      for (const std::size_t page : {1U, 5U, 6U, 8U}) {
        EXPECT_EQ(
            std::memcmp(&image[which][page * page_bytes], &rubbish[which][page * page_bytes], page_bytes), 0);
      }
    }
    batch.read_keys->fill(3);  // as they were made
    batch.read_values->fill(3);
    wrong.spoil(batch, a, targets);
    const KvcalStatus status = a.dequantise();
    expect_refused(status, a, wrong.refused, "kvcal_dequantise: " + wrong.says);
    EXPECT_TRUE(batch.read_keys->bytes() == image[0]);
    EXPECT_TRUE(batch.read_values->bytes() == image[1]);
  }
}

}  // namespace
}  // namespace kvcal::codec
