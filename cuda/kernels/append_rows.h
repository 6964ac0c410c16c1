// cuda/kernels/append_rows.h: what appending keys and appending values have in common: which rows are new, how they are
// loaded, where codes and outliers go. The kernels' bodies are in append_kernel.h.
#pragma once

#include <cstdint>

#include "cuda/kernels/cache_view.h"
#include "cuda/kernels/lane_numbers.h"
#include "cuda/kernels/outlier_slots.h"
#include "cuda/kernels/turn_row.h"

namespace kvcal::codec {

struct AppendArguments {
  LayerView layer;
  CacheView cache;
  TableView table;
  /// [sequences + 1]: sequence i brings rows starts[i] to starts[i + 1].
  const std::int32_t* starts = nullptr;
  const std::int32_t* lengths = nullptr;  ///< [sequences]: tokens that it had before
  std::uint32_t max_new_tokens = 0;       ///< no sequence brings more
  std::int64_t rows = 0;                  ///< of keys and values
  NumbersView keys, values;               ///< data null: not brought
};

/// The pages that the new tokens of a sequence may touch; at least one, so that every sequence is looked at.
KVCAL_HOST_DEVICE std::uint32_t most_pages(std::uint32_t max_new_tokens, std::uint32_t page_tokens) {
  return (max_new_tokens + page_tokens - 2) / page_tokens + 1;
}

KVCAL_HOST_DEVICE std::uint64_t task_count(const AppendArguments& a) {
  return std::uint64_t{a.table.sequences} * most_pages(a.max_new_tokens, a.cache.layout.page_tokens) *
         a.layer.kv_heads;
}

/// A warp's own memory. kSlots: of the tile, or of all strips.
template <unsigned kDim, unsigned kSlots>
struct AppendScratch {
  float midpoints[kMaxCentroids], levels[kMaxCentroids];
  std::uint32_t slots[kSlots];
  /// A byte for each code of a tile's values; keys use half of it, a byte for each pair. The rows are apart by a little
  /// more than they need, so that lanes read from different banks.
  std::uint8_t codes[kTileTokens][kDim + 8];
};
template <unsigned kDim>
using KeyScratch = AppendScratch<kDim, KVCAL_MOST_SLOTS>;
template <unsigned kDim>
using ValueScratch = AppendScratch<kDim, kDim / kStripChannels * KVCAL_MOST_SLOTS>;

/// The new tokens of a page.
struct NewRows {
  std::uint8_t* record = nullptr;  ///< null: there is nothing to do
  unsigned begin = 0, end = 0;     ///< rows of the page
  unsigned sinks = 0;              ///< the page's rows that are sinks
  std::uint64_t sink_slot = 0;     ///< of the sequence
  std::int64_t input = 0;          ///< the input's row of the page's row 0; it may lie before the input
  bool refused = false;            ///< something is out of range: nothing is done
};

KVCAL_HOST_DEVICE NewRows find_new_rows(const AppendArguments& a, const PageTask& task) {
  NewRows rows;
  const std::int64_t first = a.starts[task.sequence], last = a.starts[task.sequence + 1];
  const std::int64_t past = a.lengths[task.sequence], count = last - first;
  if (first < 0 || count < 0 || last > a.rows || past < 0 || count > std::int64_t{a.max_new_tokens}) {
    rows.refused = task.page == 0;
    return rows;
  }
  const std::uint32_t page_tokens = a.cache.layout.page_tokens;
  const std::int64_t tokens = page_tokens;
  const std::int64_t page = std::int64_t{static_cast<std::uint32_t>(past) / page_tokens} + task.page;
  const std::int64_t begin = past > page * tokens ? past : page * tokens;
  const std::int64_t end = past + count < (page + 1) * tokens ? past + count : (page + 1) * tokens;
  if (begin >= end) return rows;
  rows.begin = static_cast<unsigned>(begin - page * tokens);
  rows.end = static_cast<unsigned>(end - page * tokens);
  rows.input = first + page * tokens - past;
  if (page == 0) rows.sinks = a.layer.sinks;
  rows.sink_slot = find_sinks(a.cache, a.table, task.sequence);
  const PageTask place{task.sequence, static_cast<std::uint32_t>(page), task.head};
  rows.record = find_record(a.cache, a.table, place, a.layer.kv_heads);
  if (rows.begin < rows.sinks && rows.sink_slot == a.cache.sink_slots) rows.record = nullptr;
  rows.refused = rows.record == nullptr;
  return rows;
}

/// What a warp met, in each of its lanes; told once at the end.
template <typename Warp>
struct Met {
  typename Warp::template PerLane<std::uint32_t> not_finite, saturated;
  std::uint32_t outliers = 0, dropped = 0;
};

/// A lane's numbers as they can be stored, each storable().
template <unsigned kCount>
KVCAL_HOST_DEVICE void make_storable(LaneNumbers<kCount>& x, std::uint32_t& not_finite,
                                     std::uint32_t& saturated) {
  // One look is enough where all are well: NaN and infinity have larger bits than any other number.
  std::uint32_t largest = 0;
  KVCAL_UNROLL
  for (unsigned i = 0; i < kCount; ++i) {
    const std::uint32_t bits = float_bits(x.x[i]) & 0x7fffffffU;
    largest = bits > largest ? bits : largest;
  }
  if (largest <= float_bits(kHalfMax)) {
    KVCAL_UNROLL
    for (unsigned i = 0; i < kCount; ++i) x.x[i] = add_rn(x.x[i], 0.0F);
    return;
  }
  KVCAL_UNROLL
  for (unsigned i = 0; i < kCount; ++i) {
    const float given = x.x[i];
    if (!is_finite(given)) {
      ++not_finite;
    } else if (given > kHalfMax || given < -kHalfMax) {
      ++saturated;
    }
    x.x[i] = storable(given);
  }
}

/// The input's rows of a head, one after the other.
template <typename Warp, unsigned kCount>
class RowReader {
 public:
  using Row = typename Warp::template PerLane<LaneNumbers<kCount>>;

  KVCAL_WARP_BODY RowReader(const NumbersView& from, std::int64_t row, unsigned head)
      : from_(from), at_(row * from.token_stride + head * from.head_stride) {}

  /// The next row, as it can be stored.
  KVCAL_WARP_BODY void next(Warp& warp, Row& x, Met<Warp>& met) {
    warp.each([&](unsigned lane) {
      load_numbers(from_, at_ + lane * kCount, x[lane]);
      make_storable(x[lane], met.not_finite[lane], met.saturated[lane]);
    });
    at_ += from_.token_stride;
  }

 private:
  const NumbersView& from_;
  std::int64_t at_;
};

/// A row of RowReader, turned; each number storable() again.
template <typename Warp, unsigned kCount>
KVCAL_WARP_BODY void turn_storable(Warp& warp, const Rotation& rotation,
                                   typename RowReader<Warp, kCount>::Row& x, Met<Warp>& met) {
  if (rotation.block == 0) return;
  turn_row<Warp, kCount>(warp, rotation, x);
  warp.each([&](unsigned lane) { make_storable(x[lane], met.not_finite[lane], met.saturated[lane]); });
}

/// The rows of a page that are sinks, in fp16. to: [sinks][dim] of this sequence and head.
template <typename Warp, unsigned kCount>
KVCAL_WARP_BODY void store_sinks(Warp& warp, const NewRows& rows, const NumbersView& from,
                                 const Rotation& rotation, unsigned head, std::uint16_t* to, Met<Warp>& met) {
  RowReader<Warp, kCount> reader(from, rows.input + rows.begin, head);
  typename RowReader<Warp, kCount>::Row x;
  KVCAL_ROLLED
  for (unsigned row = rows.begin; row < rows.sinks && row < rows.end; ++row) {
    reader.next(warp, x, met);
    turn_storable<Warp, kCount>(warp, rotation, x, met);
    warp.each([&](unsigned lane) {
      KVCAL_UNROLL
      for (unsigned i = 0; i < kCount; ++i)
        to[row * kCount * kLanes + lane * kCount + i] = saturated_half(x[lane].x[i]);
    });
  }
}

/// The part of a tile that is new.
struct NewTile {
  unsigned first = 0;           ///< the page's row of the tile's row 0
  unsigned begin = 0, end = 0;  ///< rows of the tile that are new
  unsigned coded = 0;           ///< the first of them that is no sink
};

KVCAL_HOST_DEVICE NewTile find_new_tile(const NewRows& rows, unsigned tile) {
  NewTile part;
  part.first = tile * kTileTokens;
  part.begin = rows.begin > part.first ? rows.begin - part.first : 0;
  part.end = rows.end - part.first < kTileTokens ? rows.end - part.first : kTileTokens;
  part.coded = rows.sinks > part.first + part.begin ? rows.sinks - part.first : part.begin;
  return part;
}

/// body(row, x) for each new row of a tile that is no sink, turned; the next is loaded meanwhile.
template <typename Warp, unsigned kCount, typename Body>
KVCAL_WARP_BODY void for_rows(Warp& warp, const NewRows& rows, const NewTile& tile, const NumbersView& from,
                              const Rotation& rotation, unsigned head, Met<Warp>& met, const Body& body) {
  RowReader<Warp, kCount> reader(from, rows.input + tile.first + tile.coded, head);
  typename RowReader<Warp, kCount>::Row x, next;
  if (tile.coded < tile.end) reader.next(warp, next, met);
  for (unsigned row = tile.coded; row < tile.end; ++row) {
    x = next;
    if (row + 1 < tile.end) reader.next(warp, next, met);
    turn_storable<Warp, kCount>(warp, rotation, x, met);
    body(row, x);
  }
}

template <typename Warp, typename Scratch>
KVCAL_WARP_BODY void load_tables(Warp& warp, const Datatype& datatype, Scratch& scratch) {
  warp.each([&](unsigned lane) {
    if (lane < kMaxCentroids - 1) scratch.midpoints[lane] = datatype.midpoints[lane];
    if (lane < kMaxCentroids) scratch.levels[lane] = datatype.levels[lane];
  });
  warp.sync();
}

/// A row's outliers, those of `deltas` that are not nothing, into `list(channel)`.
/// place(channel): the list and the index there.
template <typename Warp, unsigned kCount, typename Place>
KVCAL_WARP_BODY void insert_outliers(Warp& warp,
                                     const typename Warp::template PerLane<LaneDeltas<kCount>>& deltas,
                                     unsigned slots, const Place& place, Met<Warp>& met) {
  typename Warp::template PerLane<bool> any;
  warp.each([&](unsigned lane) {
    any[lane] = false;
    KVCAL_UNROLL
    for (unsigned i = 0; i < kCount; ++i) any[lane] = any[lane] || !is_nothing(deltas[lane].delta[i]);
  });
  if (warp.ballot(any) == 0) return;
  KVCAL_UNROLL
  for (unsigned i = 0; i < kCount; ++i) {
    typename Warp::template PerLane<bool> some;
    typename Warp::template PerLane<std::uint32_t> delta;
    warp.each([&](unsigned lane) {
      delta[lane] = deltas[lane].delta[i];
      some[lane] = !is_nothing(deltas[lane].delta[i]);
    });
    std::uint32_t left = warp.ballot(some);
    met.outliers += count_bits(left);
    for (; left != 0; left &= left - 1) {
      const unsigned lane = lowest_bit(left);
      const auto at = place(lane * kCount + i);
      const auto bits = static_cast<std::uint16_t>(warp.broadcast(delta, lane));
      met.dropped += insert_slot(warp, at.list, slots, make_slot(at.index, bits));
    }
  }
}

struct SlotPlace {
  std::uint32_t* list;
  unsigned index;
};

/// A tile's words from `spread(lane, step)`, its new codes each in its nibble, and from what is there of the rows before
/// `begin`; row_of(lane, nibble): whose it is.
template <typename Warp, int kBits, unsigned kDim, typename Spread, typename RowOf>
KVCAL_WARP_BODY void store_tile(Warp& warp, std::uint8_t* tile, unsigned begin, const Spread& spread,
                                const RowOf& row_of) {
  constexpr unsigned kWords = words_per_lane(kDim, kBits);
  warp.each([&](unsigned lane) {
    LaneWords<kWords> words{};
    KVCAL_UNROLL
    for (unsigned step = 0; step < kDim / 16; ++step) put_step<kBits>(spread(lane, step), step, words.w);
    if (begin > 0) {
      std::uint32_t kept = 0;
      KVCAL_UNROLL
      for (unsigned n = 0; n < 8; ++n) kept |= row_of(lane, n) < begin ? 0xfU << (4 * n) : 0U;
      LaneWords<kWords> old;
      load_words(tile, lane, old);
      KVCAL_UNROLL
      for (unsigned w = 0; w < kWords; ++w) words.w[w] |= old.w[w] & kept;
    }
    store_words(tile, lane, words);
  });
}

/// Bytes begin to end of a record, multiples of 16, as 0.
template <typename Warp>
KVCAL_WARP_BODY void clear(Warp& warp, std::uint8_t* record, unsigned begin, unsigned end) {
  warp.each([&](unsigned lane) {
    KVCAL_ROLLED
    for (unsigned at = begin + 16 * lane; at < end; at += 16 * kLanes) store_chunk(Chunk<16>{}, record + at);
  });
}

template <typename Warp>
KVCAL_WARP_BODY void tell(Warp& warp, KvcalCounters* counters, const Met<Warp>& met, bool keys) {
  warp.count(keys ? &counters->key_outliers : &counters->value_outliers, met.outliers);
  warp.count(keys ? &counters->dropped_keys : &counters->dropped_values, met.dropped);
  warp.count(&counters->not_finite, warp.reduce_add(met.not_finite));
  warp.count(&counters->saturated, warp.reduce_add(met.saturated));
}

}  // namespace kvcal::codec
