#include "cuda/paged_cache.h"

#include <cstring>

#include "cuda/kernels/float16.h"

namespace kvcal::codec {

TypedNumbers::TypedNumbers(std::size_t count, KvcalType type)
    : count_(count), type_(type), blocks_(std::make_unique<Block[]>(count / 4 + 1)) {}

TypedNumbers::TypedNumbers(const std::vector<float>& numbers, KvcalType type)
    : TypedNumbers(numbers.size(), type) {
  for (std::size_t i = 0; i < count_; ++i) {
    if (type == KVCAL_FLOAT32) {
      std::memcpy(reinterpret_cast<char*>(blocks_.get()) + 4 * i, &numbers[i], 4);
      continue;
    }
    const std::uint16_t bits =
        type == KVCAL_FLOAT16 ? float_to_half(numbers[i]) : float_to_bfloat16(numbers[i]);
    std::memcpy(reinterpret_cast<char*>(blocks_.get()) + 2 * i, &bits, 2);
  }
}

std::vector<float> TypedNumbers::numbers() const {
  std::vector<float> numbers(count_);
  for (std::size_t i = 0; i < count_; ++i) {
    if (type_ == KVCAL_FLOAT32) {
      std::memcpy(&numbers[i], reinterpret_cast<const char*>(blocks_.get()) + 4 * i, 4);
      continue;
    }
    std::uint16_t bits = 0;
    std::memcpy(&bits, reinterpret_cast<const char*>(blocks_.get()) + 2 * i, 2);
    numbers[i] = type_ == KVCAL_FLOAT16 ? half_to_float(bits) : bfloat16_to_float(bits);
  }
  return numbers;
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
  const KvcalNewTokens tokens{
      starts.back(),
      starts.data(),
      lengths_.data(),
      static_cast<std::uint32_t>(most),
      {typed_keys.data(), type, std::int64_t{shape_.kv_heads} * shape_.key_dim, shape_.key_dim},
      {typed_values.data(), type, std::int64_t{shape_.kv_heads} * shape_.value_dim, shape_.value_dim}};
  const KvcalCache given = cache();
  const KvcalTable where = table();
  const KvcalStatus status = kvcal_append(opened_.get(), 0, &given, &where, &tokens, nullptr);
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
  const KvcalTable one{1, max_pages_, table_.data() + std::size_t{sequence} * max_pages_,
                       &sink_slots_[sequence]};
  const KvcalRange range{0, max_pages_, &lengths_[sequence], nullptr};
  const KvcalCache given = cache();
  EXPECT_EQ(kvcal_dequantise(opened_.get(), 0, &given, &one, &range, &key_pages, &value_pages, nullptr),
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
  const auto* begin = reinterpret_cast<const std::uint8_t*>(records_.get()) +
                      (physical * shape_.kv_heads + head) * layout_.record_bytes;
  std::vector<std::uint8_t> bytes(begin, begin + layout_.record_bytes);
  const std::size_t end =
      layout_.value_outliers + shape_.value_dim / KVCAL_STRIP_CHANNELS * layout_.value_slots * 4;
  std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(end), bytes.end(), std::uint8_t{0});
  return bytes;
}

std::vector<std::uint16_t> PagedCache::sinks(std::uint32_t sequence, bool keys) const {
  const std::vector<std::uint16_t>& all = keys ? key_sinks_ : value_sinks_;
  const std::size_t size = all.size() / sink_slots_.size();
  const auto begin =
      all.begin() + static_cast<std::ptrdiff_t>(size * static_cast<std::size_t>(sink_slots_[sequence]));
  return {begin, begin + static_cast<std::ptrdiff_t>(size)};
}

}  // namespace kvcal::codec
