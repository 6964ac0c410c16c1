#include "cuda/record_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "base/checked.h"
#include "base/parallel.h"
#include "cuda/hadamard.h"
#include "cuda/record_slots.h"
#include "cuda/threshold_finder.h"

namespace kvcal::codec {
namespace {

using Bytes = std::span<std::uint8_t>;
using ReadBytes = std::span<const std::uint8_t>;

void require(bool holds, const std::string& what) {
  if (!holds) throw base::InvalidInput("paged records: " + what);
}

float clean(float x, KvcalCounters& counters) {
  if (!std::isfinite(x)) {
    ++counters.not_finite;
    return 0;
  }
  if (std::abs(x) > kHalfMax) {
    ++counters.saturated;
    return std::copysign(kHalfMax, x);
  }
  return x == 0 ? 0.0F : x;
}

std::uint16_t saturated_half(float x) {
  return float_to_half(std::clamp(x, -kHalfMax, kHalfMax));
}

float read_code(unsigned code, const Affine& affine, const Datatype& datatype) {
  return half_to_float(
      saturated_half(dequantise(code, half_to_float(affine.scale), half_to_float(affine.zero), datatype)));
}

unsigned code_of(float x, const Affine& affine, const Datatype& datatype) {
  const float u = normalise(x, half_to_float(affine.zero), inverse_scale(half_to_float(affine.scale)));
  return nearest_code(u, datatype);
}

// +-0 where it is no outlier.
std::uint16_t delta_of(float x, float read, KvcalCounters& counters) {
  const float difference = add_rn(x, -read);
  if (std::abs(difference) > kHalfMax) ++counters.saturated;
  return saturated_half(difference);
}

/// One (page, head) of a sequence: which numbers it has, and where.
struct Part {
  const RecordLayer& layer;
  const KvcalRecordLayout& layout;
  std::size_t tokens;
  std::size_t page, head;

  [[nodiscard]] std::size_t token(std::size_t in_page) const { return page * layout.page_tokens + in_page; }
  [[nodiscard]] std::size_t count() const {
    return std::min<std::size_t>(layout.page_tokens, tokens - token(0));
  }
  [[nodiscard]] bool is_sink(std::size_t in_page) const { return token(in_page) < layer.sinks; }
  // Where a token's numbers begin: [tokens][kv_heads][dim], [kv_heads][sinks][dim].
  [[nodiscard]] std::size_t at(std::size_t in_page, std::size_t dim) const {
    return (token(in_page) * layer.kv_heads + head) * dim;
  }
  [[nodiscard]] std::size_t sink_at(std::size_t in_page, std::size_t dim) const {
    return (head * layer.sinks + token(in_page)) * dim;
  }
  [[nodiscard]] std::size_t record_at() const { return (page * layer.kv_heads + head) * layout.record_bytes; }
};

// A token's numbers, cleaned, and with a rotation block turned; a sink's also to `sinks`.
std::vector<float> take(const Part& part, std::size_t in_page, std::span<const float> x, std::size_t dim,
                        std::size_t rotation_block, std::vector<std::uint16_t>& sinks,
                        KvcalCounters& counters) {
  std::vector<float> row(dim);
  for (std::size_t c = 0; c < dim; ++c) row[c] = clean(x[part.at(in_page, dim) + c], counters);
  if (rotation_block > 0) {
    turn_hadamard(row, rotation_block);
    for (float& number : row) number = clean(number, counters);
  }
  if (part.is_sink(in_page))
    std::ranges::transform(row, sinks.begin() + static_cast<std::ptrdiff_t>(part.sink_at(in_page, dim)),
                           float_to_half);
  return row;
}

void encode_keys_of(const Part& part, std::span<const float> x, Bytes record,
                    std::vector<std::uint16_t>& sinks, KvcalCounters& counters) {
  const KeyNormaliser& normaliser = part.layer.keys;
  const Datatype& datatype = part.layer.key;
  const CodeTile tile{part.layout.key_bits, part.layout.key_dim, true};
  for (std::size_t first = 0; first < part.count(); first += KVCAL_TILE_TOKENS) {
    const std::size_t index = first / KVCAL_TILE_TOKENS;
    RecordSlots slots(part.layout.key_slots);
    for (std::size_t t = first; t < std::min<std::size_t>(first + KVCAL_TILE_TOKENS, part.count()); ++t) {
      const std::vector<float> row = take(part, t, x, tile.dim, 0, sinks, counters);
      if (part.is_sink(t)) continue;
      for (std::size_t c = 0; c < tile.dim; ++c) {
        const std::size_t channel = part.head * tile.dim + c;
        const Affine& affine = normaliser.affines()[channel];
        const unsigned code = code_of(row[c], affine, datatype);
        tile.put(record.subspan(index * tile.bytes()), t - first, c, code);
        if (slots.any() && normaliser.is_outlier(channel, row[c]))
          slots.add((t - first) * tile.dim + c,
                    delta_of(row[c], read_code(code, affine, datatype), counters));
      }
    }
    slots.write(record.subspan(part.layout.key_outliers + index * slots.bytes()), counters.key_outliers,
                counters.dropped_keys);
  }
}

void encode_values_of(const Part& part, std::span<const float> x, ThresholdFinder finder, Bytes record,
                      std::vector<std::uint16_t>& sinks, KvcalCounters& counters) {
  const Datatype& datatype = part.layer.value;
  const CodeTile tile{part.layout.value_bits, part.layout.value_dim, false};
  std::vector<RecordSlots> strips(tile.dim / KVCAL_STRIP_CHANNELS, RecordSlots(part.layout.value_slots));
  for (std::size_t t = 0; t < part.count(); ++t) {
    const std::vector<float> row =
        take(part, t, x, tile.dim, part.layout.value_rotation_block, sinks, counters);
    if (part.is_sink(t)) continue;
    const auto [lower, upper] = finder.find(row);
    const Affine affine = affine_of(lower, upper);
    put_u16(record, part.layout.value_affines + 4 * t, affine.scale);
    put_u16(record, part.layout.value_affines + 4 * t + 2, affine.zero);
    const Bytes codes = record.subspan(part.layout.value_codes + t / KVCAL_TILE_TOKENS * tile.bytes());
    for (std::size_t c = 0; c < tile.dim; ++c) {
      const unsigned code = code_of(row[c], affine, datatype);
      tile.put(codes, t % KVCAL_TILE_TOKENS, c, code);
      RecordSlots& slots = strips[c / KVCAL_STRIP_CHANNELS];
      if (slots.any() && part.layer.value_outliers > 0 && (row[c] < lower || row[c] > upper))
        slots.add(t * KVCAL_STRIP_CHANNELS + c % KVCAL_STRIP_CHANNELS,
                  delta_of(row[c], read_code(code, affine, datatype), counters));
    }
  }
  for (std::size_t s = 0; s < strips.size(); ++s)
    strips[s].write(record.subspan(part.layout.value_outliers + s * strips[s].bytes()),
                    counters.value_outliers, counters.dropped_values);
}

float with_delta(float read, float delta) {
  return delta == 0 ? read : half_to_float(saturated_half(add_rn(read, delta)));
}

void decode_keys_of(const Part& part, ReadBytes record, std::span<const std::uint16_t> sinks,
                    std::span<float> to) {
  const CodeTile tile{part.layout.key_bits, part.layout.key_dim, true};
  const RecordSlots slots(part.layout.key_slots);
  for (std::size_t first = 0; first < part.count(); first += KVCAL_TILE_TOKENS) {
    const std::size_t index = first / KVCAL_TILE_TOKENS;
    const std::vector<float> deltas = slots.read(
        record.subspan(part.layout.key_outliers + index * slots.bytes()), KVCAL_TILE_TOKENS * tile.dim);
    for (std::size_t t = first; t < std::min<std::size_t>(first + KVCAL_TILE_TOKENS, part.count()); ++t) {
      for (std::size_t c = 0; c < tile.dim; ++c) {
        float& x = to[part.at(t, tile.dim) + c];
        if (part.is_sink(t)) {
          x = half_to_float(sinks[part.sink_at(t, tile.dim) + c]);
          continue;
        }
        const unsigned code = tile.get(record.subspan(index * tile.bytes()), t - first, c);
        const Affine& affine = part.layer.keys.affines()[part.head * tile.dim + c];
        x = with_delta(read_code(code, affine, part.layer.key), deltas[(t - first) * tile.dim + c]);
      }
    }
  }
}

void decode_values_of(const Part& part, ReadBytes record, std::span<const std::uint16_t> sinks,
                      std::span<float> to) {
  const CodeTile tile{part.layout.value_bits, part.layout.value_dim, false};
  const RecordSlots slots(part.layout.value_slots);
  std::vector<std::vector<float>> deltas;  // of each strip
  for (std::size_t s = 0; s < tile.dim / KVCAL_STRIP_CHANNELS; ++s)
    deltas.push_back(slots.read(record.subspan(part.layout.value_outliers + s * slots.bytes()),
                                std::size_t{part.layout.page_tokens} * KVCAL_STRIP_CHANNELS));
  for (std::size_t t = 0; t < part.count(); ++t) {
    const std::size_t at = part.layout.value_affines + 4 * t;
    const Affine affine{get_u16(record, at), get_u16(record, at + 2)};
    if (!is_finite_half(affine.scale) || !is_finite_half(affine.zero))
      require(false, base::concat("the scale or zero of token ", part.token(t), "'s value is not finite"));
    const ReadBytes codes = record.subspan(part.layout.value_codes + t / KVCAL_TILE_TOKENS * tile.bytes());
    for (std::size_t c = 0; c < tile.dim; ++c) {
      float& x = to[part.at(t, tile.dim) + c];
      if (part.is_sink(t)) {
        x = half_to_float(sinks[part.sink_at(t, tile.dim) + c]);
        continue;
      }
      const unsigned code = tile.get(codes, t % KVCAL_TILE_TOKENS, c);
      const float delta =
          deltas[c / KVCAL_STRIP_CHANNELS][t * KVCAL_STRIP_CHANNELS + c % KVCAL_STRIP_CHANNELS];
      x = with_delta(read_code(code, affine, part.layer.value), delta);
    }
    if (part.layout.value_rotation_block > 0)
      turn_hadamard(to.subspan(part.at(t, tile.dim), tile.dim), part.layout.value_rotation_block);
  }
}

// Whether size = a * b * c, all three from outside.
bool is_size(std::size_t size, std::size_t a, std::size_t b, std::size_t c) {
  return size == base::checked_multiply(base::checked_multiply(a, b, "paged records"), c, "paged records");
}

// Whether there are as many numbers of keys and of values as the pages have, none of what they do not.
bool are_sizes(const RecordPages& pages, std::size_t keys, std::size_t values) {
  const std::size_t tokens = pages.tokens;
  return is_size(keys, pages.has_keys ? tokens : 0, pages.kv_heads, pages.layout.key_dim) &&
         is_size(values, pages.has_values ? tokens : 0, pages.kv_heads, pages.layout.value_dim);
}

void check(const RecordLayer& layer, const KvcalRecordLayout& layout) {
  const KvcalRecordLayout expected = make_record_layout(
      layout.key_bits, layout.value_bits, layout.key_dim, layout.value_dim, layout.page_tokens,
      layout.key_slots, layout.value_slots, layout.value_rotation_block);
  require(std::memcmp(&expected, &layout, sizeof(layout)) == 0,
          "the layout is not what make_record_layout() makes");
  require(
      std::cmp_equal(layer.key.bits, layout.key_bits) && std::cmp_equal(layer.value.bits, layout.value_bits),
      base::concat("codes of ", layout.key_bits, " and ", layout.value_bits, " bits, datatypes of ",
                   layer.key.bits, " and ", layer.value.bits));
  require(layer.kv_heads > 0 && is_size(layer.keys.channels(), layer.kv_heads, layout.key_dim, 1),
          base::concat(layer.kv_heads, " kv heads of ", layout.key_dim, " channels, thresholds of ",
                       layer.keys.channels()));
  require(layer.sinks <= kMostSinks, base::concat(layer.sinks, " sinks, at most ", kMostSinks, " are kept"));
}

// body(part) for each page and head.
template <typename Body>
void for_each_part(const RecordLayer& layer, const RecordPages& pages, int threads, const Body& body) {
  const auto count = static_cast<std::int64_t>(pages.pages() * layer.kv_heads);
  base::parallel_for(count, threads, [&](std::int64_t i) {
    const auto index = static_cast<std::size_t>(i);
    body(Part{layer, pages.layout, pages.tokens, index / layer.kv_heads, index % layer.kv_heads});
  });
}

void add(KvcalCounters& sum, const KvcalCounters& part) {
  sum.key_outliers += part.key_outliers;
  sum.value_outliers += part.value_outliers;
  sum.dropped_keys += part.dropped_keys;
  sum.dropped_values += part.dropped_values;
  sum.not_finite += part.not_finite;
  sum.saturated += part.saturated;
}

}  // namespace

std::size_t RecordPages::pages() const {
  return tokens / layout.page_tokens + (tokens % layout.page_tokens != 0 ? 1 : 0);
}

std::size_t RecordPages::bytes() const {
  const std::size_t sink_numbers = std::min(sinks, tokens) * kv_heads;
  const std::size_t of_keys = layout.value_codes + (layout.value_outliers - layout.key_outliers);
  const std::size_t parts = pages() * kv_heads;
  std::size_t bytes = 0;
  if (has_keys) bytes += parts * of_keys + sink_numbers * layout.key_dim * sizeof(std::uint16_t);
  if (has_values)
    bytes +=
        parts * (layout.record_bytes - of_keys) + sink_numbers * layout.value_dim * sizeof(std::uint16_t);
  return bytes;
}

RecordPages empty_records(std::size_t key_numbers, std::size_t value_numbers, const RecordLayer& layer,
                          const KvcalRecordLayout& layout) {
  check(layer, layout);
  RecordPages pages{layout, layer.kv_heads, layer.sinks, 0, {}, {}, {}, {}};
  pages.has_keys = key_numbers > 0 || value_numbers == 0;
  pages.has_values = value_numbers > 0 || key_numbers == 0;
  pages.tokens = pages.has_keys ? key_numbers / layer.keys.channels()
                                : value_numbers / (layer.kv_heads * layout.value_dim);
  require(are_sizes(pages, key_numbers, value_numbers),
          base::concat(key_numbers, " numbers of keys and ", value_numbers, " of values, by token ",
                       layer.kv_heads, " kv heads of ", layout.key_dim, " and ", layout.value_dim));
  pages.records.resize(pages.pages() * layer.kv_heads * layout.record_bytes);
  pages.key_sinks.resize(layer.kv_heads * layer.sinks * layout.key_dim);
  pages.value_sinks.resize(layer.kv_heads * layer.sinks * layout.value_dim);
  return pages;
}

RecordPages encode_records(std::span<const float> keys, std::span<const float> values,
                           const RecordLayer& layer, const KvcalRecordLayout& layout, int threads) {
  RecordPages pages = empty_records(keys.size(), values.size(), layer, layout);
  // Made once before the loop: throws where the fraction is out of range.
  const ThresholdFinder finder(layout.value_dim, layer.value_outliers);
  std::vector<KvcalCounters> counters(pages.pages() * layer.kv_heads);
  for_each_part(layer, pages, threads, [&](const Part& part) {
    const Bytes record = Bytes(pages.records).subspan(part.record_at(), layout.record_bytes);
    KvcalCounters& counted = counters[part.page * layer.kv_heads + part.head];
    if (pages.has_keys) encode_keys_of(part, keys, record, pages.key_sinks, counted);
    if (pages.has_values) encode_values_of(part, values, finder, record, pages.value_sinks, counted);
  });
  for (const KvcalCounters& part : counters) add(pages.counters, part);
  return pages;
}

void check_records(const RecordPages& pages, const RecordLayer& layer, std::size_t key_numbers,
                   std::size_t value_numbers) {
  const KvcalRecordLayout& layout = pages.layout;
  check(layer, layout);
  require(pages.kv_heads == layer.kv_heads && pages.sinks == layer.sinks,
          base::concat(pages.kv_heads, " kv heads and ", pages.sinks, " sinks, the layer has ",
                       layer.kv_heads, " and ", layer.sinks));
  require(is_size(pages.records.size(), pages.pages(), layer.kv_heads, layout.record_bytes),
          base::concat(pages.records.size(), " bytes for ", pages.pages(), " pages of ", layer.kv_heads,
                       " kv heads, ", layout.record_bytes, " each"));
  require(is_size(pages.key_sinks.size(), layer.sinks, layer.kv_heads, layout.key_dim) &&
              is_size(pages.value_sinks.size(), layer.sinks, layer.kv_heads, layout.value_dim),
          base::concat(pages.key_sinks.size(), " and ", pages.value_sinks.size(), " numbers of sinks"));
  require(are_sizes(pages, key_numbers, value_numbers),
          base::concat(pages.tokens, " tokens, room for ", key_numbers, " numbers of keys and ",
                       value_numbers, " of values"));
}

void decode_records(const RecordPages& pages, const RecordLayer& layer, std::span<float> keys,
                    std::span<float> values, int threads) {
  check_records(pages, layer, keys.size(), values.size());
  const KvcalRecordLayout& layout = pages.layout;
  for_each_part(layer, pages, threads, [&](const Part& part) {
    const ReadBytes record = ReadBytes(pages.records).subspan(part.record_at(), layout.record_bytes);
    if (pages.has_keys) decode_keys_of(part, record, pages.key_sinks, keys);
    if (pages.has_values) decode_values_of(part, record, pages.value_sinks, values);
  });
}

}  // namespace kvcal::codec
