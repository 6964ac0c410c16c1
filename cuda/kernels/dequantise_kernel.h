// cuda/kernels/dequantise_kernel.h: the body of the kernels that read a cache back (record_format.h) into pages of fp16,
// bf16 or float32, for an attention that knows nothing of codes.
//
// One warp reads a tile of 16 tokens of one kv head: keys or values. Numbers are put together in fp16, as the record
// says, and converted from there; values that were turned are turned back before, in float32. Tokens beyond a sequence's
// length are written as 0, in the pages that it begins.
//
// Launch: any grid of whole warps; warp i does task i of page_task() over tiles in the place of pages. Each warp has a
// scratch of its own (ReadScratch).
#pragma once

#include <cstdint>

#include "cuda/kernels/cache_view.h"
#include "cuda/kernels/lane_numbers.h"
#include "cuda/kernels/turn_row.h"
#include "cuda/kernels/warp.h"

namespace kvcal::codec {

/// Where pages are written: number (page, token, head, channel) at page * page_stride + token * token_stride +
/// head * head_stride + channel.
struct PagesView {
  void* data = nullptr;
  KvcalType type = KVCAL_FLOAT16;
  std::int64_t page_stride = 0, token_stride = 0, head_stride = 0;
  std::uint64_t pages = 0;
};

struct DequantiseArguments {
  LayerView layer;
  CacheView cache;
  TableView table;
  const std::int32_t* lengths = nullptr;  ///< [sequences]: tokens of each
  /// [sequences][pages]: pages to write; null: sequence * pages + page.
  const std::int32_t* targets = nullptr;
  std::uint32_t first_page = 0, pages = 0;  ///< of each sequence: which of its pages are read
  PagesView keys, values;                   ///< data null: not read
};

KVCAL_HOST_DEVICE std::uint64_t task_count(const DequantiseArguments& a) {
  return std::uint64_t{a.table.sequences} * a.pages * (a.cache.layout.page_tokens / kTileTokens) *
         a.layer.kv_heads;
}

/// A warp's own memory: the tile in fp16.
template <unsigned kDim>
struct alignas(16) ReadScratch {
  float levels[kMaxCentroids];
  std::uint16_t rows[kTileTokens][kDim + 8];
};

/// A tile to be read.
struct TileTask {
  const std::uint8_t* record = nullptr;       ///< null where there is none to read
  const std::uint16_t* sinks_from = nullptr;  ///< [sinks][dim] of the sequence and head
  unsigned sequence = 0, head = 0;
  unsigned tile = 0;             ///< of its page
  unsigned rows = 0, sinks = 0;  ///< rows of the tile that hold tokens; the first of them are sinks
  std::int64_t target = -1;      ///< page to be written; below 0: none
  bool refused = false;
};

KVCAL_HOST_DEVICE TileTask find_tile(const DequantiseArguments& a, std::uint32_t index, bool keys,
                                     unsigned dim) {
  const unsigned tiles = a.cache.layout.page_tokens / kTileTokens;
  const PageTask part = page_task(index, a.pages * tiles, a.layer.kv_heads);
  TileTask task;
  task.sequence = part.sequence;
  task.head = part.head;
  task.tile = part.page % tiles;
  const std::uint32_t page = part.page / tiles;
  const std::uint64_t entry = std::uint64_t{part.sequence} * a.pages + page;
  const PagesView& to = keys ? a.keys : a.values;
  const std::int64_t length = a.lengths[part.sequence];
  const std::int64_t first = (std::int64_t{a.first_page} + page) * a.cache.layout.page_tokens;  // of the page
  if (length <= first) {  // the sequence ends before the page
    task.refused = length < 0 && page == 0;
    return task;
  }
  const std::int64_t target =
      a.targets != nullptr ? std::int64_t{a.targets[entry]} : static_cast<std::int64_t>(entry);
  const PageTask place{part.sequence, a.first_page + page, part.head};
  const std::uint8_t* record = find_record(a.cache, a.table, place, a.layer.kv_heads);
  const std::int64_t begin = first + task.tile * kTileTokens;
  const std::int64_t left = length - begin;
  task.rows = left <= 0 ? 0 : left < std::int64_t{kTileTokens} ? static_cast<unsigned>(left) : kTileTokens;
  if (begin == 0 && a.layer.sinks > 0) {
    const std::uint64_t slot = find_sinks(a.cache, a.table, part.sequence);
    if (slot == a.cache.sink_slots) record = nullptr;
    task.sinks = a.layer.sinks < task.rows ? a.layer.sinks : task.rows;
    task.sinks_from = (keys ? a.cache.key_sinks : a.cache.value_sinks) +
                      (slot * a.layer.kv_heads + part.head) * a.layer.sinks * dim;
  }
  if (record == nullptr || target < 0 || static_cast<std::uint64_t>(target) >= to.pages) {
    task.refused = true;
    return task;
  }
  task.record = record;
  task.target = target;
  return task;
}

/// Number (row, channel) of a tile in its page.
KVCAL_HOST_DEVICE std::int64_t place_of(const PagesView& to, const TileTask& task, unsigned row,
                                        unsigned channel) {
  return task.target * to.page_stride + (std::int64_t{task.tile} * kTileTokens + row) * to.token_stride +
         task.head * to.head_stride + channel;
}

template <unsigned kCount>
KVCAL_HOST_DEVICE LaneNumbers<kCount> from_halves(const Chunk<2 * kCount>& halves) {
  LaneNumbers<kCount> x;
  KVCAL_UNROLL
  for (unsigned i = 0; i < kCount; ++i)
    x.x[i] = half_to_float(static_cast<std::uint16_t>(halves.word[i / 2] >> (16 * (i % 2))));
  return x;
}

/// kCount numbers to number `at` on, which is a multiple of kCount, as `to.data` is of 16 bytes.
template <unsigned kCount>
KVCAL_HOST_DEVICE void write_numbers(const PagesView& to, std::int64_t at, const LaneNumbers<kCount>& x) {
  if (to.type == KVCAL_FLOAT32) {
    constexpr unsigned kAtOnce = kCount < 4 ? kCount : 4;
    KVCAL_UNROLL
    for (unsigned first = 0; first < kCount; first += kAtOnce) {
      Chunk<4 * kAtOnce> chunk;
      KVCAL_UNROLL
      for (unsigned i = 0; i < kAtOnce; ++i) chunk.word[i] = float_bits(x.x[first + i]);
      store_chunk(chunk, static_cast<float*>(to.data) + at + first);
    }
    return;
  }
  const auto narrow = [&](float number) {
    return std::uint32_t{to.type == KVCAL_FLOAT16 ? saturated_half(number) : float_to_bfloat16(number)};
  };
  Chunk<2 * kCount> chunk;
  KVCAL_UNROLL
  for (unsigned i = 0; i < kCount; i += 2) chunk.word[i / 2] = narrow(x.x[i]) | narrow(x.x[i + 1]) << 16;
  store_chunk(chunk, static_cast<std::uint16_t*>(to.data) + at);
}
/// The same of numbers in fp16.
template <unsigned kCount>
KVCAL_HOST_DEVICE void write_numbers(const PagesView& to, std::int64_t at, const Chunk<2 * kCount>& halves) {
  if (to.type == KVCAL_FLOAT16)
    store_chunk(halves, static_cast<std::uint16_t*>(to.data) + at);
  else
    write_numbers<kCount>(to, at, from_halves<kCount>(halves));
}

/// A tile's rows from the scratch to the page; those from `rows` on as 0.
template <typename Warp, unsigned kDim>
KVCAL_WARP_BODY void write_tile(Warp& warp, const PagesView& to, const TileTask& task,
                                ReadScratch<kDim>& scratch) {
  constexpr unsigned kCount = 8, kLanesPerRow = kDim / kCount, kRows = kLanes / kLanesPerRow;
  for (unsigned first = 0; first < kTileTokens; first += kRows) {
    warp.each([&](unsigned lane) {
      const unsigned row = first + lane / kLanesPerRow, channel = lane % kLanesPerRow * kCount;
      Chunk<2 * kCount> chunk{};
      if (row < task.rows) chunk = load_chunk<2 * kCount>(&scratch.rows[row][channel]);
      write_numbers<kCount>(to, place_of(to, task, row, channel), chunk);
    });
  }
}

/// The same, each row turned back.
template <typename Warp, unsigned kDim>
KVCAL_WARP_BODY void write_turned_tile(Warp& warp, const PagesView& to, const Rotation& rotation,
                                       const TileTask& task, const ReadScratch<kDim>& scratch) {
  constexpr unsigned kCount = kDim / kLanes;
  KVCAL_ROLLED
  for (unsigned row = 0; row < kTileTokens; ++row) {
    typename Warp::template PerLane<LaneNumbers<kCount>> x;
    warp.each([&](unsigned lane) {
      Chunk<2 * kCount> chunk{};
      if (row < task.rows) chunk = load_chunk<2 * kCount>(&scratch.rows[row][lane * kCount]);
      x[lane] = from_halves<kCount>(chunk);
    });
    turn_row<Warp, kCount>(warp, rotation, x);
    warp.each(
        [&](unsigned lane) { write_numbers<kCount>(to, place_of(to, task, row, lane * kCount), x[lane]); });
  }
}

/// Sinks, then the deltas of `slots` slots. place(slot): row of the tile and channel; row >= 16 is another tile's.
template <typename Warp, unsigned kDim, typename Place>
KVCAL_WARP_BODY void mend_tile(Warp& warp, const TileTask& task, const std::uint32_t* stored, unsigned slots,
                               ReadScratch<kDim>& scratch, const Place& place) {
  warp.each([&](unsigned lane) {
    for (unsigned i = lane; i < slots; i += kLanes) {
      const std::uint32_t slot = stored[i];
      const auto [row, channel] = place(slot, i);
      if (is_nothing(slot_delta(slot)) || row >= kTileTokens) continue;
      scratch.rows[row][channel] = add_delta(scratch.rows[row][channel], slot_delta(slot));
    }
  });
  warp.sync();
  warp.each([&](unsigned lane) {
    for (unsigned i = lane; i < task.sinks * kDim; i += kLanes)
      scratch.rows[i / kDim][i % kDim] = task.sinks_from[i];
  });
  warp.sync();
}

struct RowChannel {
  unsigned row, channel;
};

/// Keys of task `index`.
template <typename Warp, int kBits, unsigned kDim>
KVCAL_WARP_BODY void dequantise_keys(Warp& warp, const DequantiseArguments& a, std::uint32_t index,
                                     ReadScratch<kDim>& scratch) {
  constexpr unsigned kWords = words_per_lane(kDim, kBits);
  const TileTask task = find_tile(a, index, true, kDim);
  warp.count(&a.cache.counters->refused, task.refused && task.head == 0 && task.tile == 0 ? 1 : 0);
  if (task.record == nullptr) return;
  const KvcalRecordLayout& layout = a.cache.layout;
  warp.each([&](unsigned lane) {
    if (lane < kMaxCentroids) scratch.levels[lane] = a.layer.key.levels[lane];
  });
  warp.sync();
  warp.each([&](unsigned lane) {
    LaneWords<kWords> words;
    load_words(task.record + task.tile * kTileTokens * kDim * kBits / 8, lane, words);
    const Affine* affines = a.layer.key_affines + task.head * kDim;
    KVCAL_UNROLL
    for (unsigned step = 0; step < kDim / 16; ++step) {
      const std::uint32_t spread = get_step<kBits>(step, words.w);
      KVCAL_UNROLL
      for (unsigned half = 0; half < 2; ++half) {  // of the channels: the two of a RoPE pair
        const unsigned channel = key_channel(lane, step, 4 * half, kDim);
        const auto pair = load_chunk<8>(affines + channel);
        std::uint32_t rows[2] = {0, 0};
        KVCAL_UNROLL
        for (unsigned e = 0; e < 2; ++e) {
          const float scale = half_to_float(static_cast<std::uint16_t>(pair.word[e]));
          const float zero = half_to_float(static_cast<std::uint16_t>(pair.word[e] >> 16));
          KVCAL_UNROLL
          for (unsigned high = 0; high < 2; ++high) {
            const unsigned code = spread >> (4 * (4 * half + 2 * high + e)) & 0xfU;
            rows[high] |= std::uint32_t{read_code(code, scale, zero, scratch.levels)} << (16 * e);
          }
        }
        const unsigned row = key_row(lane, 0);
        store_chunk(Chunk<4>{{rows[0]}}, &scratch.rows[row][channel]);
        store_chunk(Chunk<4>{{rows[1]}}, &scratch.rows[row + 8][channel]);
      }
    }
  });
  warp.sync();
  const auto* stored = reinterpret_cast<const std::uint32_t*>(task.record + layout.key_outliers) +
                       task.tile * layout.key_slots;
  mend_tile(warp, task, stored, layout.key_slots, scratch, [](std::uint32_t slot, unsigned) {
    return RowChannel{slot_index(slot) / kDim, slot_index(slot) % kDim};
  });
  write_tile(warp, a.keys, task, scratch);
}

/// Values of task `index`.
template <typename Warp, int kBits, unsigned kDim>
KVCAL_WARP_BODY void dequantise_values(Warp& warp, const DequantiseArguments& a, std::uint32_t index,
                                       ReadScratch<kDim>& scratch) {
  constexpr unsigned kWords = words_per_lane(kDim, kBits);
  const TileTask task = find_tile(a, index, false, kDim);
  const bool counts = a.keys.data == nullptr && task.head == 0 && task.tile == 0;
  warp.count(&a.cache.counters->refused, task.refused && counts ? 1 : 0);
  if (task.record == nullptr) return;
  const KvcalRecordLayout& layout = a.cache.layout;
  warp.each([&](unsigned lane) {
    if (lane < kMaxCentroids) scratch.levels[lane] = a.layer.value.levels[lane];
  });
  warp.sync();
  warp.each([&](unsigned lane) {
    LaneWords<kWords> words;
    load_words(task.record + layout.value_codes + task.tile * kTileTokens * kDim * kBits / 8, lane, words);
    const auto* affines =
        reinterpret_cast<const Affine*>(task.record + layout.value_affines) + task.tile * kTileTokens;
    float scale[4], zero[4];  // of the lane's four tokens
    KVCAL_UNROLL
    for (unsigned k = 0; k < 4; ++k) {
      const Affine affine = affines[value_row(lane, k % 2 + k / 2 * 4)];
      scale[k] = half_to_float(affine.scale);
      zero[k] = half_to_float(affine.zero);
    }
    KVCAL_UNROLL
    for (unsigned step = 0; step < kDim / 16; ++step) {
      const std::uint32_t spread = get_step<kBits>(step, words.w);
      KVCAL_UNROLL
      for (unsigned n = 0; n < 8; ++n) {
        const unsigned k = n % 2 + n / 4 * 2;
        scratch.rows[value_row(lane, n)][value_channel(lane, step, n)] =
            read_code(spread >> (4 * n) & 0xfU, scale[k], zero[k], scratch.levels);
      }
    }
  });
  warp.sync();
  const auto* stored = reinterpret_cast<const std::uint32_t*>(task.record + layout.value_outliers);
  const unsigned first = task.tile * kTileTokens, slots = layout.value_slots;
  mend_tile(warp, task, stored, kDim / kStripChannels * slots, scratch, [&](std::uint32_t slot, unsigned i) {
    return RowChannel{slot_index(slot) / kStripChannels - first,  // wraps around for an earlier tile's
                      i / slots * kStripChannels + slot_index(slot) % kStripChannels};
  });
  if (a.layer.value_rotation.block > 0)
    write_turned_tile(warp, a.values, a.layer.value_rotation, task, scratch);
  else
    write_tile(warp, a.values, task, scratch);
}

}  // namespace kvcal::codec
