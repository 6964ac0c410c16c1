// cuda/kernels/append_kernel.h: the body of the kernels that put new tokens into a cache (record_format.h).
//
// One warp writes the new tokens of one page of one sequence for one kv head: keys or values. So a decode step of one
// token is a batch x kv_heads of warps, and a prompt as many for each of its pages. Tokens are taken in order; what the
// page held before them stays, what it held behind their first is forgotten: a sequence may be cut back and go on. (An
// outlier that a forgotten token had driven out of full slots does not come back.) A page may hold anything before its
// first token comes; from then on its record is defined, but for keys or values that were never brought and for the
// bytes behind its last part.
//
// Launch: any grid of whole warps; warp i does task i of page_task(), pages = most_pages(). No memory is shared between
// warps; each has a scratch of its own (AppendScratch).
#pragma once

#include <cstdint>

#include "cuda/kernels/append_rows.h"

namespace kvcal::codec {

/// A key channel as a lane has it in registers.
template <unsigned kCount>
struct KeyChannels {
  float zero[kCount], inverse[kCount], lower[kCount], upper[kCount];
};

template <unsigned kCount>
KVCAL_HOST_DEVICE void load_channels(const LayerView& layer, unsigned first, KeyChannels<kCount>& channels) {
  KVCAL_UNROLL
  for (unsigned i = 0; i < kCount; ++i) {
    const Affine affine = layer.key_affines[first + i];
    channels.zero[i] = half_to_float(affine.zero);
    channels.inverse[i] = inverse_scale(half_to_float(affine.scale));
    channels.lower[i] = layer.key_lower != nullptr ? layer.key_lower[first + i] : -kHalfMax;
    channels.upper[i] = layer.key_upper != nullptr ? layer.key_upper[first + i] : kHalfMax;
  }
}

/// The delta of an outlier; counts one that is beyond fp16.
KVCAL_HOST_DEVICE std::uint16_t counted_delta(float number, unsigned code, float scale, float zero,
                                              const float* levels, std::uint32_t& saturated) {
  const std::uint16_t read = read_code(code, scale, zero, levels);
  if (is_too_far(number, read)) ++saturated;
  return delta_of(number, read);
}

/// Of a row of keys each lane's codes, in pairs, to `codes`, and the deltas of its outliers. [kDim] of the head
template <typename Warp, int kBits, unsigned kDim>
KVCAL_WARP_BODY void encode_key_row(
    Warp& warp, const Affine* affines,
    const typename Warp::template PerLane<KeyChannels<kDim / kLanes>>& channels,
    const typename RowReader<Warp, kDim / kLanes>::Row& x, KeyScratch<kDim>& scratch, std::uint8_t* codes,
    bool keeps_outliers, typename Warp::template PerLane<LaneDeltas<kDim / kLanes>>& deltas, Met<Warp>& met) {
  constexpr unsigned kCount = kDim / kLanes;
  warp.each([&](unsigned lane) {
    const KeyChannels<kCount>& c = channels[lane];
    unsigned code[kCount];
    bool outside = false;
    KVCAL_UNROLL
    for (unsigned i = 0; i < kCount; ++i) {
      const float number = x[lane].x[i];
      code[i] = search_code<kBits>(normalise(number, c.zero[i], c.inverse[i]), scratch.midpoints);
      outside = outside || number < c.lower[i] || number > c.upper[i];
      deltas[lane].delta[i] = 0;
    }
    KVCAL_UNROLL
    for (unsigned i = 0; i < kCount; i += 2)
      codes[(lane * kCount + i) / 2] = static_cast<std::uint8_t>(code[i] | code[i + 1] << 4);
    if (!outside || !keeps_outliers) return;
    KVCAL_UNROLL
    for (unsigned i = 0; i < kCount; ++i) {
      const float number = x[lane].x[i];
      if (number >= c.lower[i] && number <= c.upper[i]) continue;
      const float scale = half_to_float(affines[lane * kCount + i].scale);
      deltas[lane].delta[i] =
          counted_delta(number, code[i], scale, c.zero[i], scratch.levels, met.saturated[lane]);
    }
  });
}

/// A tile's codes from the scratch to the record.
template <typename Warp, int kBits, unsigned kDim>
KVCAL_WARP_BODY void store_key_tile(Warp& warp, std::uint8_t* to, const NewTile& tile,
                                    const KeyScratch<kDim>& scratch) {
  store_tile<Warp, kBits, kDim>(
      warp, to, tile.begin,
      [&](unsigned lane, unsigned step) {
        std::uint32_t spread = 0;
        KVCAL_UNROLL
        for (unsigned j = 0; j < 4; ++j) {
          const unsigned row = key_row(lane, 2 * j);
          const std::uint32_t pair = scratch.codes[row][key_channel(lane, step, 2 * j, kDim) / 2];
          if (row >= tile.coded && row < tile.end) spread |= pair << (8 * j);
        }
        return spread;
      },
      [](unsigned lane, unsigned nibble) { return key_row(lane, nibble); });
}

/// Keys of task `index`.
template <typename Warp, int kBits, unsigned kDim>
KVCAL_WARP_BODY void append_keys(Warp& warp, const AppendArguments& a, std::uint32_t index,
                                 KeyScratch<kDim>& scratch) {
  constexpr unsigned kCount = kDim / kLanes;
  const KvcalRecordLayout& layout = a.cache.layout;
  const PageTask task = page_task(index, most_pages(a.max_new_tokens, layout.page_tokens), a.layer.kv_heads);
  const NewRows rows = find_new_rows(a, task);
  warp.count(&a.cache.counters->refused, rows.refused && task.head == 0 ? 1 : 0);
  if (rows.record == nullptr) return;

  Met<Warp> met;
  if (rows.begin < rows.sinks) {
    std::uint16_t* to =
        a.cache.key_sinks + (rows.sink_slot * a.layer.kv_heads + task.head) * a.layer.sinks * kDim;
    store_sinks<Warp, kCount>(warp, rows, a.keys, Rotation{}, task.head, to, met);
  }
  load_tables(warp, a.layer.key, scratch);
  typename Warp::template PerLane<KeyChannels<kCount>> channels;
  warp.each([&](unsigned lane) {
    load_channels<kCount>(a.layer, task.head * kDim + lane * kCount, channels[lane]);
  });
  const bool keeps_outliers = layout.key_slots > 0 && a.layer.key_lower != nullptr;

  KVCAL_ROLLED
  for (unsigned index_of_tile = rows.begin / kTileTokens; index_of_tile * kTileTokens < rows.end;
       ++index_of_tile) {
    const NewTile tile = find_new_tile(rows, index_of_tile);
    auto* stored = reinterpret_cast<std::uint32_t*>(rows.record + layout.key_outliers) +
                   index_of_tile * layout.key_slots;
    load_slots(warp, stored, layout.key_slots, scratch.slots,
               [&](std::uint32_t slot) { return slot_index(slot) / kDim < tile.begin; });
    for_rows<Warp, kCount>(warp, rows, tile, a.keys, Rotation{}, task.head, met,
                           [&](unsigned row, const typename RowReader<Warp, kCount>::Row& x) {
                             typename Warp::template PerLane<LaneDeltas<kCount>> deltas;
                             encode_key_row<Warp, kBits, kDim>(warp, a.layer.key_affines + task.head * kDim,
                                                               channels, x, scratch, scratch.codes[row],
                                                               keeps_outliers, deltas, met);
                             if (!keeps_outliers) return;
                             insert_outliers<Warp, kCount>(
                                 warp, deltas, layout.key_slots,
                                 [&](unsigned channel) {
                                   return SlotPlace{scratch.slots, row * kDim + channel};
                                 },
                                 met);
                           });
    warp.sync();
    store_key_tile<Warp, kBits, kDim>(warp, rows.record + tile.first * kDim * kBits / 8, tile, scratch);
    store_slots(warp, scratch.slots, layout.key_slots, stored);
    warp.sync();
  }
  if (rows.begin == 0) {  // the page is new: its other tiles are empty
    const unsigned tiles = (rows.end + kTileTokens - 1) / kTileTokens;
    clear(warp, rows.record, tiles * kTileTokens * kDim * kBits / 8, layout.value_codes);
    clear(warp, rows.record, layout.key_outliers + tiles * layout.key_slots * 4, layout.value_outliers);
  }
  tell(warp, a.cache.counters, met, true);
}

/// A lane's numbers in the order of unsigned ones, ascending: Batcher's odd-even merge sort.
template <unsigned kCount>
KVCAL_HOST_DEVICE LaneKeys<kCount> sorted_keys(const LaneNumbers<kCount>& x) {
  LaneKeys<kCount> keys;
  KVCAL_UNROLL
  for (unsigned i = 0; i < kCount; ++i) keys.key[i] = ordered_bits(x.x[i]);
  KVCAL_UNROLL
  for (unsigned p = 1; p < kCount; p *= 2) {
    KVCAL_UNROLL
    for (unsigned k = p; k >= 1; k /= 2) {
      KVCAL_UNROLL
      for (unsigned i = 0; i + k < kCount; ++i) {
        if (i < k % p || (i - k % p) / k % 2 != 0 || i / (2 * p) != (i + k) / (2 * p)) continue;
        const std::uint32_t low = keys.key[i], high = keys.key[i + k];
        keys.key[i] = low < high ? low : high;
        keys.key[i + k] = low < high ? high : low;
      }
    }
  }
  return keys;
}

/// The last and the last but one of the numbers that were taken.
struct Taken {
  std::uint32_t last = 0, before = 0;
};

/// Takes the smallest of all lanes' numbers, count times; or with kLargest the largest. keys: sorted_keys(), used up.
template <typename Warp, unsigned kCount, bool kLargest>
KVCAL_WARP_BODY Taken take_extremes(Warp& warp, typename Warp::template PerLane<LaneKeys<kCount>>& keys,
                                    unsigned count) {
  Taken taken;
  for (unsigned pick = 0; pick < count; ++pick) {
    typename Warp::template PerLane<std::uint32_t> own;
    typename Warp::template PerLane<bool> has;
    warp.each([&](unsigned lane) { own[lane] = keys[lane].key[kLargest ? kCount - 1 : 0]; });
    taken.before = taken.last;
    taken.last = kLargest ? warp.reduce_max(own) : warp.reduce_min(own);
    warp.each([&](unsigned lane) { has[lane] = own[lane] == taken.last; });
    const unsigned owner = lowest_bit(warp.ballot(has));
    warp.each([&](unsigned lane) {
      if (lane != owner) return;
      KVCAL_UNROLL
      for (unsigned i = 1; i < kCount; ++i) {
        if constexpr (kLargest) {
          keys[lane].key[kCount - i] = keys[lane].key[kCount - i - 1];
        } else {
          keys[lane].key[i - 1] = keys[lane].key[i];
        }
      }
      keys[lane].key[kLargest ? 0 : kCount - 1] = kLargest ? 0U : 0xffffffffU;
    });
  }
  return taken;
}

/// A value's range, as it is stored, and its thresholds.
struct ValueRange {
  float lower, upper;
  Affine affine;
};

template <typename Warp, unsigned kCount>
KVCAL_WARP_BODY ValueRange find_range(Warp& warp, const LayerView& layer,
                                      const typename RowReader<Warp, kCount>::Row& x) {
  typename Warp::template PerLane<LaneKeys<kCount>> smallest, largest;
  warp.each([&](unsigned lane) { smallest[lane] = largest[lane] = sorted_keys(x[lane]); });
  const QuantilePlace &low = layer.value_low, &high = layer.value_high;
  // From either end the threshold's further neighbour is taken last.
  const Taken least =
      take_extremes<Warp, kCount, false>(warp, smallest, low.below + (low.fraction > 0 ? 2 : 1));
  const Taken most = take_extremes<Warp, kCount, true>(warp, largest, kCount * kLanes - high.below);
  const float lower =
      low.fraction > 0 ? between(from_ordered_bits(least.before), from_ordered_bits(least.last), low.fraction)
                       : from_ordered_bits(least.last);
  const float upper = between(from_ordered_bits(most.last), from_ordered_bits(most.before), high.fraction);
  return {lower, upper, affine_of(lower, upper)};
}

/// Of a row of values each lane's codes to `codes`, and the deltas of its outliers.
template <typename Warp, int kBits, unsigned kDim>
KVCAL_WARP_BODY void encode_value_row(Warp& warp, const ValueRange& range,
                                      const typename RowReader<Warp, kDim / kLanes>::Row& x,
                                      const ValueScratch<kDim>& scratch, std::uint8_t* codes,
                                      bool keeps_outliers,
                                      typename Warp::template PerLane<LaneDeltas<kDim / kLanes>>& deltas,
                                      Met<Warp>& met) {
  constexpr unsigned kCount = kDim / kLanes;
  const float scale = half_to_float(range.affine.scale), zero = half_to_float(range.affine.zero);
  const float inverse = inverse_scale(scale);
  warp.each([&](unsigned lane) {
    unsigned code[kCount];
    bool outside = false;
    KVCAL_UNROLL
    for (unsigned i = 0; i < kCount; ++i) {
      const float number = x[lane].x[i];
      code[i] = search_code<kBits>(normalise(number, zero, inverse), scratch.midpoints);
      codes[lane * kCount + i] = static_cast<std::uint8_t>(code[i]);
      outside = outside || number < range.lower || number > range.upper;
      deltas[lane].delta[i] = 0;
    }
    if (!outside || !keeps_outliers) return;
    KVCAL_UNROLL
    for (unsigned i = 0; i < kCount; ++i) {
      const float number = x[lane].x[i];
      if (number >= range.lower && number <= range.upper) continue;
      deltas[lane].delta[i] =
          counted_delta(number, code[i], scale, zero, scratch.levels, met.saturated[lane]);
    }
  });
}

/// A tile's codes from the scratch to the record.
template <typename Warp, int kBits, unsigned kDim>
KVCAL_WARP_BODY void store_value_tile(Warp& warp, std::uint8_t* to, const NewTile& tile,
                                      const ValueScratch<kDim>& scratch) {
  store_tile<Warp, kBits, kDim>(
      warp, to, tile.begin,
      [&](unsigned lane, unsigned step) {
        std::uint32_t spread = 0;
        KVCAL_UNROLL
        for (unsigned n = 0; n < 8; ++n) {
          const unsigned row = value_row(lane, n);
          const std::uint32_t code = scratch.codes[row][value_channel(lane, step, n)];
          if (row >= tile.coded && row < tile.end) spread |= code << (4 * n);
        }
        return spread;
      },
      [](unsigned lane, unsigned nibble) { return value_row(lane, nibble); });
}

/// The slots of all strips, of which those before the page's row `begin` are kept.
template <typename Warp, unsigned kDim>
KVCAL_WARP_BODY void load_strips(Warp& warp, const std::uint32_t* stored, unsigned slots, unsigned begin,
                                 ValueScratch<kDim>& scratch) {
  KVCAL_ROLLED
  for (unsigned strip = 0; strip < kDim / kStripChannels; ++strip) {
    load_slots(warp, stored + strip * slots, slots, scratch.slots + strip * slots,
               [&](std::uint32_t slot) { return slot_index(slot) / kStripChannels < begin; });
  }
}

/// Values of task `index`.
template <typename Warp, int kBits, unsigned kDim>
KVCAL_WARP_BODY void append_values(Warp& warp, const AppendArguments& a, std::uint32_t index,
                                   ValueScratch<kDim>& scratch) {
  constexpr unsigned kCount = kDim / kLanes;
  const KvcalRecordLayout& layout = a.cache.layout;
  const unsigned slots = layout.value_slots;
  const PageTask task = page_task(index, most_pages(a.max_new_tokens, layout.page_tokens), a.layer.kv_heads);
  const NewRows rows = find_new_rows(a, task);
  const bool alone = a.keys.data == nullptr;  // else the keys' warp has counted it
  warp.count(&a.cache.counters->refused, rows.refused && alone && task.head == 0 ? 1 : 0);
  if (rows.record == nullptr) return;

  Met<Warp> met;
  if (rows.begin < rows.sinks) {
    std::uint16_t* to =
        a.cache.value_sinks + (rows.sink_slot * a.layer.kv_heads + task.head) * a.layer.sinks * kDim;
    store_sinks<Warp, kCount>(warp, rows, a.values, a.layer.value_rotation, task.head, to, met);
  }
  load_tables(warp, a.layer.value, scratch);
  // Without a fraction of outliers the thresholds are the smallest and the largest, beyond which nothing lies.
  const bool keeps_outliers = slots > 0;
  auto* stored = reinterpret_cast<std::uint32_t*>(rows.record + layout.value_outliers);
  load_strips<Warp, kDim>(warp, stored, slots, rows.begin, scratch);
  auto* affines = reinterpret_cast<Affine*>(rows.record + layout.value_affines);

  KVCAL_ROLLED
  for (unsigned index_of_tile = rows.begin / kTileTokens; index_of_tile * kTileTokens < rows.end;
       ++index_of_tile) {
    const NewTile tile = find_new_tile(rows, index_of_tile);
    // Rows that have no codes, or none yet, read as 0.
    warp.each([&](unsigned lane) {
      if (lane < kTileTokens && lane >= tile.begin && (lane < tile.coded || lane >= tile.end))
        affines[tile.first + lane] = Affine{};
    });
    for_rows<Warp, kCount>(warp, rows, tile, a.values, a.layer.value_rotation, task.head, met,
                           [&](unsigned row, const typename RowReader<Warp, kCount>::Row& x) {
                             const ValueRange range = find_range<Warp, kCount>(warp, a.layer, x);
                             warp.each([&](unsigned lane) {
                               if (lane == 0) affines[tile.first + row] = range.affine;
                             });
                             typename Warp::template PerLane<LaneDeltas<kCount>> deltas;
                             encode_value_row<Warp, kBits, kDim>(warp, range, x, scratch, scratch.codes[row],
                                                                 keeps_outliers, deltas, met);
                             if (!keeps_outliers) return;
                             insert_outliers<Warp, kCount>(
                                 warp, deltas, slots,
                                 [&](unsigned channel) {
                                   return SlotPlace{
                                       scratch.slots + channel / kStripChannels * slots,
                                       (tile.first + row) * kStripChannels + channel % kStripChannels};
                                 },
                                 met);
                           });
    warp.sync();
    store_value_tile<Warp, kBits, kDim>(
        warp, rows.record + layout.value_codes + tile.first * kDim * kBits / 8, tile, scratch);
    warp.sync();
  }
  if (rows.begin == 0) {
    const unsigned tiles = (rows.end + kTileTokens - 1) / kTileTokens;
    clear(warp, rows.record, layout.value_codes + tiles * kTileTokens * kDim * kBits / 8,
          layout.value_affines);
    clear(warp, rows.record, layout.value_affines + tiles * kTileTokens * 4, layout.key_outliers);
  }
  // Strip after strip, as in the record.
  store_slots(warp, scratch.slots, kDim / kStripChannels * slots, stored);
  tell(warp, a.cache.counters, met, false);
}

}  // namespace kvcal::codec
