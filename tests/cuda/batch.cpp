#include "cuda/batch.h"

#include "cuda/kernels/float16.h"

namespace kvcal::codec {

Buffer::Buffer(std::span<const float> numbers, KvcalType type)
    : Buffer(numbers.size() * (type == KVCAL_FLOAT32 ? 4 : 2), 0) {
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (type == KVCAL_FLOAT32) {
      std::memcpy(data() + 4 * i, &numbers[i], 4);
      continue;
    }
    const std::uint16_t bits =
        type == KVCAL_FLOAT16 ? float_to_half(numbers[i]) : float_to_bfloat16(numbers[i]);
    std::memcpy(data() + 2 * i, &bits, 2);
  }
}

Batch::Batch(const CacheShape& of, const std::vector<std::size_t>& tokens, std::uint32_t most_pages,
             unsigned seed, KvcalType numbers)
    : shape(of),
      type(numbers),
      max_pages(most_pages),
      codebook(make_codebook(of)),
      opened(open_codebook(codebook)) {
  EXPECT_EQ(kvcal_record_layout(opened.get(), 0, of.page_tokens, of.key_slots, of.value_slots, &layout),
            KVCAL_OK)
      << kvcal_last_error();
  for (const std::size_t count : tokens) {
    lengths.push_back(0);
    ends.push_back(static_cast<std::int32_t>(count));
    starts.push_back(starts.back() + ends.back());
    sink_slots.push_back(static_cast<std::int32_t>(tokens.size() - lengths.size()));
  }
  pages.resize(tokens.size() * max_pages);
  std::iota(pages.begin(), pages.end(), 1);  // page 0 is nobody's
  std::mt19937 random(seed);
  std::shuffle(pages.begin(), pages.end(), random);

  const auto rows = static_cast<std::size_t>(starts.back());
  keys = some_numbers(rows, std::size_t{of.kv_heads} * of.key_dim, seed);
  values = some_numbers(rows, std::size_t{of.kv_heads} * of.value_dim, seed + 1);
  new_keys = std::make_unique<Buffer>(keys, type);
  new_values = std::make_unique<Buffer>(values, type);
  const auto rubbish = [&](std::size_t bytes) { return std::make_unique<Buffer>(bytes, seed + 2); };
  records = rubbish((pages.size() + 1) * of.kv_heads * layout.record_bytes);
  key_sinks = rubbish(tokens.size() * of.kv_heads * of.sinks * of.key_dim * 2);
  value_sinks = rubbish(tokens.size() * of.kv_heads * of.sinks * of.value_dim * 2);
  read_keys = rubbish(pages.size() * page_bytes(of.key_dim));
  read_values = rubbish(pages.size() * page_bytes(of.value_dim));
}

Arguments Batch::arguments() {
  const auto rows = [&](Buffer& from, std::int64_t dim) {
    return KvcalRows{from.data(), type, shape.kv_heads * dim, dim};
  };
  const auto room = [&](Buffer& to, std::int64_t dim) {
    const std::int64_t token = shape.kv_heads * dim;
    return KvcalPages{to.data(), type, pages.size(), shape.page_tokens * token, token, dim};
  };
  std::size_t most = 0;
  for (std::size_t i = 0; i < sequences(); ++i)
    most = std::max(most, static_cast<std::size_t>(starts[i + 1] - starts[i]));
  Arguments a;
  a.codebook = opened.get();
  a.cache = {
      layout,   records->data(), pages.size() + 1, key_sinks->data(), value_sinks->data(), sink_slots.size(),
      &counters};
  a.table = {static_cast<std::uint32_t>(sequences()), max_pages, pages.data(), sink_slots.data()};
  a.tokens = {starts.back(),
              starts.data(),
              lengths.data(),
              static_cast<std::uint32_t>(most),
              rows(*new_keys, shape.key_dim),
              rows(*new_values, shape.value_dim)};
  a.range = {0, max_pages, ends.data(), nullptr};
  a.keys = room(*read_keys, shape.key_dim);
  a.values = room(*read_values, shape.value_dim);
  return a;
}

RecordPages Batch::expected(std::size_t first, std::size_t last) const {
  const auto rows = [&](const std::vector<float>& x, std::size_t dim) {
    return std::span(x).subspan(first * shape.kv_heads * dim, (last - first) * shape.kv_heads * dim);
  };
  return encode_records(rows(keys, shape.key_dim), rows(values, shape.value_dim), codebook.layer, layout, 1);
}

}  // namespace kvcal::codec
