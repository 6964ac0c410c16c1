#include "cuda/batch.h"

#include <deque>

#include "cuda/kernels/float16.h"

namespace kvcal::codec {
namespace {

/// Arguments whose pointers are to copies on the device.
class Copies {
 public:
  Copies(const Arguments& host, bool appends) : host_(host), there(host) {
    KvcalCodebookInfo info{};
    KvcalLayerInfo of{};
    EXPECT_EQ(kvcal_codebook_info(host.codebook, &info), KVCAL_OK) << kvcal_last_error();
    EXPECT_EQ(kvcal_layer_info(host.codebook, host.layer, &of), KVCAL_OK) << kvcal_last_error();
    const std::size_t sinks = host.cache.sink_slots * of.kv_heads * info.sinks * 2,
                      sequences = host.table.sequences;
    written(there.cache.records, host.cache.pages * of.kv_heads * host.cache.layout.record_bytes);
    written(there.cache.key_sinks, sinks * of.key_dim);
    written(there.cache.value_sinks, sinks * of.value_dim);
    written(there.cache.counters, sizeof(KvcalCounters));
    numbers(there.table.pages, sequences * host.table.max_pages);
    numbers(there.table.sink_slots, sequences);
    if (appends) {
      numbers(there.tokens.starts, sequences + 1);
      numbers(there.tokens.lengths, sequences);
      for (KvcalRows* rows : {&there.tokens.keys, &there.tokens.values})
        read(rows->data, bytes_of(host.tokens.rows * rows->row_stride, rows->type));
    } else {
      numbers(there.range.lengths, sequences);
      numbers(there.range.targets, sequences * host.range.pages);
      for (KvcalPages* pages : {&there.keys, &there.values})
        written(pages->data,
                bytes_of(static_cast<std::int64_t>(pages->pages) * pages->page_stride, pages->type));
    }
  }

  /// What the call that returned `status` wrote, copied back; its status, with what was refused.
  [[nodiscard]] KvcalStatus finish(KvcalStatus status) {
    if (status != KVCAL_OK) return status;
    const std::uint64_t refused = host_.cache.counters->refused;
    KvcalCounters counters{};
    status = kvcal_counters(host_.codebook, &there.cache, host_.stream, &counters);
    for (const auto& [memory, to] : written_) memory->copy_to(to, 0, memory->size());
    return status == KVCAL_INVALID_DATA && counters.refused == refused ? KVCAL_OK : status;
  }

 private:
  static std::size_t bytes_of(std::int64_t numbers, KvcalType type) {
    return static_cast<std::size_t>(numbers) * (type == KVCAL_FLOAT32 ? 4 : 2);
  }
  template <typename T>
  void read(T*& pointer, std::size_t bytes) {
    if (pointer != nullptr) pointer = memory_.emplace_back(pointer, bytes).template as<T>();
  }
  void numbers(const std::int32_t*& pointer, std::size_t count) {
    read(pointer, count * sizeof(std::int32_t));
  }
  template <typename T>
  void written(T*& pointer, std::size_t bytes) {
    if (pointer == nullptr) return;
    T* host = pointer;
    read(pointer, bytes);
    written_.emplace_back(&memory_.back(), host);
  }

  const Arguments& host_;
  std::deque<TestMemory> memory_;
  std::vector<std::pair<const TestMemory*, void*>> written_;

 public:
  Arguments there;
};

}  // namespace

KvcalStatus Arguments::append() const {
  if (device == KVCAL_DEVICE_CPU) return kvcal_append(codebook, layer, &cache, &table, &tokens, stream);
  Copies copies(*this, true);
  const Arguments& a = copies.there;
  return copies.finish(kvcal_append(codebook, layer, &a.cache, &a.table, &a.tokens, stream));
}

KvcalStatus Arguments::dequantise(bool with_keys, bool with_values) const {
  const auto call = [&](const Arguments& a) {
    return kvcal_dequantise(codebook, layer, &a.cache, &a.table, &a.range, with_keys ? &a.keys : nullptr,
                            with_values ? &a.values : nullptr, stream);
  };
  if (device == KVCAL_DEVICE_CPU) return call(*this);
  Copies copies(*this, false);
  return copies.finish(call(copies.there));
}

KvcalStatus Arguments::read_counters(KvcalCounters& to) const {
  if (device == KVCAL_DEVICE_CPU) return kvcal_counters(codebook, &cache, stream, &to);
  const Copies copies(*this, false);
  return kvcal_counters(codebook, &copies.there.cache, stream, &to);
}

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
             unsigned seed, KvcalType numbers, KvcalDevice where)
    : shape(of),
      device(where),
      type(numbers),
      max_pages(most_pages),
      codebook(make_codebook(of)),
      opened(open_codebook(codebook, where)) {
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
  a.device = device;
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
