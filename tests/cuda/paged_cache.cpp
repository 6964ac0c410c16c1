#include "cuda/paged_cache.h"

#include <cstring>
#include <stdexcept>

#include "cuda/kernels/float16.h"

namespace kvcal::codec {
namespace {

std::vector<std::int32_t> shuffled_pages(std::size_t count) {
  std::vector<std::int32_t> pages(count);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937(7));
  return pages;
}

std::vector<std::uint8_t> rubbish(std::size_t bytes) {
  std::vector<std::uint8_t> made(bytes);
  std::generate(made.begin(), made.end(),
                [random = std::mt19937(8)]() mutable { return static_cast<std::uint8_t>(random()); });
  return made;
}

KvcalRecordLayout layout_of(const KvcalCodebook* codebook, const CacheShape& shape) {
  KvcalRecordLayout layout{};
  if (kvcal_record_layout(codebook, 0, shape.page_tokens, shape.key_slots, shape.value_slots, &layout) !=
      KVCAL_OK)
    throw std::runtime_error(kvcal_last_error());
  return layout;
}

std::vector<std::uint16_t> sinks_of(std::uint32_t sequences, const CacheShape& shape, std::size_t dim) {
  return std::vector<std::uint16_t>(std::size_t{sequences} * shape.kv_heads * shape.sinks * dim);
}

}  // namespace

TypedNumbers::TypedNumbers(std::size_t count, KvcalType type)
    : count_(count), type_(type), memory_(count * 4 + 16) {}

TypedNumbers::TypedNumbers(const std::vector<float>& numbers, KvcalType type)
    : TypedNumbers(numbers.size(), type) {
  for (std::size_t i = 0; i < count_; ++i) {
    if (type == KVCAL_FLOAT32) {
      std::memcpy(memory_.host() + 4 * i, &numbers[i], 4);
      continue;
    }
    const std::uint16_t bits =
        type == KVCAL_FLOAT16 ? float_to_half(numbers[i]) : float_to_bfloat16(numbers[i]);
    std::memcpy(memory_.host() + 2 * i, &bits, 2);
  }
}

std::vector<float> TypedNumbers::numbers() const {
  std::vector<float> numbers(count_);
  if (type_ == KVCAL_FLOAT32) {
    memory_.copy_to(numbers.data(), 0, count_ * 4);
    return numbers;
  }
  std::vector<std::uint16_t> halves(count_);
  memory_.copy_to(halves.data(), 0, count_ * 2);
  std::transform(halves.begin(), halves.end(), numbers.begin(), [&](std::uint16_t bits) {
    return type_ == KVCAL_FLOAT16 ? half_to_float(bits) : bfloat16_to_float(bits);
  });
  return numbers;
}

PagedCache::PagedCache(const CacheShape& shape, std::uint32_t sequences, std::uint32_t max_pages)
    : shape_(shape),
      codebook_(make_codebook(shape)),
      opened_(open_codebook(codebook_, test_device())),
      max_pages_(max_pages),
      layout_(layout_of(opened_.get(), shape)),
      table_(shuffled_pages(std::size_t{sequences} * max_pages)),
      sink_slots_(sequences),
      lengths_(sequences),
      records_(rubbish(table_.size() * shape.kv_heads * layout_.record_bytes)),
      key_sinks_(sinks_of(sequences, shape, shape.key_dim)),
      value_sinks_(sinks_of(sequences, shape, shape.value_dim)),
      counters_(sizeof(KvcalCounters)) {
  std::iota(sink_slots_.rbegin(), sink_slots_.rend(), 0);
}

KvcalCache PagedCache::cache() {
  return {layout_,
          records_.place(),
          table_.size(),
          key_sinks_.place(),
          value_sinks_.place(),
          sink_slots_.size(),
          counters_.as<KvcalCounters>()};
}

KvcalStatus PagedCache::finished(KvcalStatus status) {
  if (status != KVCAL_OK || test_device() == KVCAL_DEVICE_CPU) return status;
  const KvcalCache where = cache();
  KvcalCounters counters{};
  return kvcal_counters(opened_.get(), &where, nullptr, &counters);
}

KvcalCounters PagedCache::counters() const {
  KvcalCounters counters{};
  counters_.copy_to(&counters, 0, sizeof(counters));
  return counters;
}

KvcalStatus PagedCache::append(const std::vector<NewTokens>& parts, KvcalType type) {
  std::vector<float> keys, values;
  std::vector<std::int32_t> starts{0};
  std::size_t most = 0;
  for (const NewTokens& part : parts) {
    keys.insert(keys.end(), part.keys.begin(), part.keys.end());
    values.insert(values.end(), part.values.begin(), part.values.end());
    starts.push_back(starts.back() + static_cast<std::int32_t>(part.tokens));
    most = std::max(most, part.tokens);
  }
  TypedNumbers typed_keys(keys, type), typed_values(values, type);
  TestMemory pages(table_), slots(sink_slots_), begins(starts), lengths(lengths_);
  const KvcalNewTokens tokens{
      starts.back(),
      begins.as<const std::int32_t>(),
      lengths.as<const std::int32_t>(),
      static_cast<std::uint32_t>(most),
      {typed_keys.data(), type, std::int64_t{shape_.kv_heads} * shape_.key_dim, shape_.key_dim},
      {typed_values.data(), type, std::int64_t{shape_.kv_heads} * shape_.value_dim, shape_.value_dim}};
  const KvcalCache given = cache();
  const KvcalTable where{static_cast<std::uint32_t>(sink_slots_.size()), max_pages_,
                         pages.as<const std::int32_t>(), slots.as<const std::int32_t>()};
  const KvcalStatus status = finished(kvcal_append(opened_.get(), 0, &given, &where, &tokens, nullptr));
  for (std::size_t i = 0; i < parts.size(); ++i) lengths_[i] += static_cast<std::int32_t>(parts[i].tokens);
  return status;
}

NewTokens PagedCache::read(std::uint32_t sequence, KvcalType type) {
  const auto tokens = static_cast<std::size_t>(lengths_[sequence]);
  const std::size_t room = std::size_t{max_pages_} * shape_.page_tokens;
  TypedNumbers keys(room * shape_.kv_heads * shape_.key_dim, type),
      values(room * shape_.kv_heads * shape_.value_dim, type);
  const auto pages = [&](TypedNumbers& to, std::int64_t dim) {
    const std::int64_t token = shape_.kv_heads * dim;
    return KvcalPages{to.data(), type, max_pages_, token * shape_.page_tokens, token, dim};
  };
  const KvcalPages key_pages = pages(keys, shape_.key_dim), value_pages = pages(values, shape_.value_dim);
  TestMemory table(table_.data() + std::size_t{sequence} * max_pages_,
                   std::size_t{max_pages_} * sizeof(std::int32_t));
  TestMemory slot(&sink_slots_[sequence], sizeof(std::int32_t)),
      length(&lengths_[sequence], sizeof(std::int32_t));
  const KvcalTable one{1, max_pages_, table.as<const std::int32_t>(), slot.as<const std::int32_t>()};
  const KvcalRange range{0, max_pages_, length.as<const std::int32_t>(), nullptr};
  const KvcalCache given = cache();
  EXPECT_EQ(
      finished(kvcal_dequantise(opened_.get(), 0, &given, &one, &range, &key_pages, &value_pages, nullptr)),
      KVCAL_OK)
      << kvcal_last_error();
  NewTokens result{keys.numbers(), values.numbers(), tokens};
  result.keys.resize(tokens * shape_.kv_heads * shape_.key_dim);
  result.values.resize(tokens * shape_.kv_heads * shape_.value_dim);
  return result;
}

std::vector<std::uint8_t> PagedCache::record(std::uint32_t sequence, std::size_t page,
                                             std::size_t head) const {
  const auto physical = static_cast<std::size_t>(table_[std::size_t{sequence} * max_pages_ + page]);
  std::vector<std::uint8_t> bytes(layout_.record_bytes);
  records_.copy_to(bytes.data(), (physical * shape_.kv_heads + head) * bytes.size(), bytes.size());
  const std::size_t end =
      layout_.value_outliers + shape_.value_dim / KVCAL_STRIP_CHANNELS * layout_.value_slots * 4;
  std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(end), bytes.end(), std::uint8_t{0});
  return bytes;
}

std::vector<std::uint16_t> PagedCache::sinks(std::uint32_t sequence, bool keys) const {
  const TestMemory& all = keys ? key_sinks_ : value_sinks_;
  const std::size_t bytes = all.size() / sink_slots_.size();
  std::vector<std::uint16_t> numbers(bytes / 2);
  all.copy_to(numbers.data(), bytes * static_cast<std::size_t>(sink_slots_[sequence]), bytes);
  return numbers;
}

}  // namespace kvcal::codec
