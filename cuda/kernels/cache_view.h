// cuda/kernels/cache_view.h: what the kernels work on, by value: pointers into the layer's tables, the cache and the
// batch. On a GPU all of them are to its memory.
#pragma once

#include <cstdint>

#include "cuda/kernels/codec_math.h"
#include "cuda/kernels/kvcal_cuda.h"
#include "cuda/kernels/record_math.h"
#include "cuda/kernels/rotation.h"

namespace kvcal::codec {

/// A layer of a codebook.
struct LayerView {
  unsigned kv_heads = 0, key_dim = 0, value_dim = 0;
  unsigned sinks = 0;                   ///< first tokens of a sequence, kept in fp16; at most 16
  const Affine* key_affines = nullptr;  ///< [kv_heads * key_dim]
  const float* key_lower = nullptr;     ///< [kv_heads * key_dim]; null, as key_upper: no key is an outlier
  const float* key_upper = nullptr;
  Datatype key, value;
  QuantilePlace value_low, value_high;  ///< a value's thresholds among its sorted numbers
  Rotation value_rotation;              ///< before its thresholds are found
};

/// Keys or values: number (token, head, channel) stands at token * token_stride + head * head_stride + channel.
struct NumbersView {
  const void* data = nullptr;
  KvcalType type = KVCAL_FLOAT16;
  std::int64_t token_stride = 0, head_stride = 0;
};

/// The cache of one layer.
struct CacheView {
  KvcalRecordLayout layout;
  std::uint8_t* records = nullptr;  ///< [pages][kv_heads][record_bytes]
  std::uint64_t pages = 0;
  std::uint16_t* key_sinks = nullptr;    ///< fp16 [sink_slots][kv_heads][sinks][key_dim]
  std::uint16_t* value_sinks = nullptr;  ///< [sink_slots][kv_heads][sinks][value_dim]
  std::uint64_t sink_slots = 0;
  KvcalCounters* counters = nullptr;
};

/// Which pages hold which tokens.
struct TableView {
  std::uint32_t sequences = 0, max_pages = 0;
  const std::int32_t* pages = nullptr;       ///< [sequences][max_pages]
  const std::int32_t* sink_slots = nullptr;  ///< [sequences]; null: sequence i has slot i
};

/// The page of a sequence that a warp works on.
struct PageTask {
  std::uint32_t sequence = 0, page = 0, head = 0;  ///< page: of the sequence, counted from 0
};

/// Task `index` of sequences x pages x heads; heads next to each other, which lie next to each other in the input.
KVCAL_HOST_DEVICE PageTask page_task(std::uint32_t index, std::uint32_t pages, std::uint32_t heads) {
  const std::uint32_t row = index / heads;
  return {row / pages, row % pages, index % heads};
}

/// Where the record of a sequence's page and head begins; null where the table names no page of the cache.
KVCAL_HOST_DEVICE std::uint8_t* find_record(const CacheView& cache, const TableView& table,
                                            const PageTask& task, unsigned kv_heads) {
  if (task.page >= table.max_pages) return nullptr;
  const std::int64_t page = table.pages[std::uint64_t{task.sequence} * table.max_pages + task.page];
  if (page < 0 || static_cast<std::uint64_t>(page) >= cache.pages) return nullptr;
  return cache.records +
         (static_cast<std::uint64_t>(page) * kv_heads + task.head) * cache.layout.record_bytes;
}

/// A sequence's place in the side buffer of sinks; sink_slots where it has none.
KVCAL_HOST_DEVICE std::uint64_t find_sinks(const CacheView& cache, const TableView& table,
                                           std::uint32_t sequence) {
  const std::int64_t slot = table.sink_slots != nullptr ? table.sink_slots[sequence] : std::int64_t{sequence};
  return slot < 0 || static_cast<std::uint64_t>(slot) >= cache.sink_slots ? cache.sink_slots
                                                                          : static_cast<std::uint64_t>(slot);
}

}  // namespace kvcal::codec
