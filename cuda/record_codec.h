// cuda/record_codec.h: the CPU codec of paged records: a sequence's keys and values to what record_format.h
// lays out, and back. The plain form of what the kernels do page by page: both write the same bytes and count
// the same. Written apart from their arithmetic on purpose: each is the other's test.
//
// Every number first: NaN and infinite become 0, what is beyond 65504 becomes +-65504, -0 becomes 0. Where the layout
// says so, values are then turned (hadamard.h), and what comes out is treated the same; reading turns back. Then
// codes and scales are those of row_codec.h with values' thresholds found per kv head (KVQuant, sections 3.1
// to 3.4). An outlier is kept as its difference to what its code reads as, both rounded to fp16, while its
// tile or strip has slots; what finds none falls to the nearest code. A difference that rounds to 0 makes no
// outlier. Reading an outlier back is off by at most half a unit in the last place of the difference and half
// of the number: by one of the number, where the difference is no larger, as thresholds around 0 have it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/record_layout.h"
#include "cuda/vector_codec.h"

namespace kvcal::codec {

/// The most tokens at a sequence's start that are kept in fp16: a tile.
inline constexpr std::size_t kMostSinks = KVCAL_TILE_TOKENS;

/// What a codebook says of one layer.
struct RecordLayer {
  std::size_t kv_heads = 0;
  KeyNormaliser keys;         ///< [kv_heads * key_dim] thresholds; knows whether keys keep outliers
  Datatype key, value;        ///< of as many bits as the layout
  double value_outliers = 0;  ///< the fraction p of a token's and head's values, 0 <= p < 0.5
  std::size_t sinks = 0;      ///< first tokens of the sequence, kept in fp16; at most kMostSinks
};

/// A sequence as it is stored.
struct RecordPages {
  KvcalRecordLayout layout{};
  std::size_t kv_heads = 0, sinks = 0;  ///< of the layer
  std::size_t tokens = 0;
  std::vector<std::uint8_t> records;       ///< [pages()][kv_heads][record_bytes]
  std::vector<std::uint16_t> key_sinks;    ///< fp16 [kv_heads][sinks][key_dim]; 0 from `tokens` on
  std::vector<std::uint16_t> value_sinks;  ///< fp16 [kv_heads][sinks][value_dim]
  KvcalCounters counters{};
  bool has_keys = true, has_values = true;  ///< false: they were not given, their parts of the records are 0

  /// layout.page_tokens > 0.
  [[nodiscard]] std::size_t pages() const;
  /// What the sequence takes: its records and fp16 for each number of a sink; of keys or values alone their part of
  /// both, what is left of a record being values'. Tables of the layer are not counted.
  [[nodiscard]] std::size_t bytes() const;
};

/// Pages with room for a sequence's numbers, of which keys or values may be none: not given.
/// Throws base::InvalidInput where sizes, layer and layout disagree.
[[nodiscard]] RecordPages empty_records(std::size_t key_numbers, std::size_t value_numbers,
                                        const RecordLayer& layer, const KvcalRecordLayout& layout);

/// Throws base::InvalidInput where pages, layer and the numbers that there is room for disagree.
void check_records(const RecordPages& pages, const RecordLayer& layer, std::size_t key_numbers,
                   std::size_t value_numbers);

/// keys: [tokens][kv_heads * key_dim], before RoPE; values: [tokens][kv_heads * value_dim]; one of them may be empty:
/// not given. threads: 0: all; the result does not depend on it.
/// Throws base::InvalidInput where sizes, layer and layout disagree; base::WrongUsage for a fraction out of
/// range.
[[nodiscard]] RecordPages encode_records(std::span<const float> keys, std::span<const float> values,
                                         const RecordLayer& layer, const KvcalRecordLayout& layout,
                                         int threads = 0);

/// keys, values: shaped as above, empty where they were not given; each number is one of fp16, but for values turned back.
/// Throws base::InvalidInput where sizes, layer and layout disagree, a slot's index is out of range, or a
/// scale, a zero or a difference is not finite.
void decode_records(const RecordPages& pages, const RecordLayer& layer, std::span<float> keys,
                    std::span<float> values, int threads = 0);

}  // namespace kvcal::codec
