// cuda/kernels/outlier_slots.h: the outliers of a tile or a strip while a warp appends to it: a list by rank in the
// warp's own memory. The best `slots` of all that were ever offered remain, whatever the order they came in.
#pragma once

#include <cstdint>

#include "cuda/kernels/record_math.h"
#include "cuda/kernels/warp.h"

namespace kvcal::codec {

/// `stored`'s slots that keep(slot) holds true for, in their order, then empty ones. list: [slots], slots <= 64.
template <typename Warp, typename Keep>
KVCAL_WARP_BODY void load_slots(Warp& warp, const std::uint32_t* stored, unsigned slots, std::uint32_t* list,
                                const Keep& keep) {
  unsigned kept = 0;
  KVCAL_ROLLED
  for (unsigned base = 0; base < slots; base += kLanes) {
    typename Warp::template PerLane<std::uint32_t> slot;
    typename Warp::template PerLane<bool> wanted;
    warp.each([&](unsigned lane) {
      const unsigned i = base + lane;
      slot[lane] = i < slots ? stored[i] : 0;
      wanted[lane] = !is_nothing(slot_delta(slot[lane])) && keep(slot[lane]);
    });
    const std::uint32_t mask = warp.ballot(wanted);
    warp.each([&](unsigned lane) {
      if (wanted[lane]) list[kept + count_bits(mask & ((1U << lane) - 1U))] = slot[lane];
    });
    kept += count_bits(mask);
  }
  warp.each([&](unsigned lane) {
    KVCAL_ROLLED
    for (unsigned i = kept + lane; i < slots; i += kLanes) list[i] = 0;
  });
  warp.sync();
}

/// Puts an outlier in its place; what was last goes. 1 where something that is an outlier went, this one or another.
template <typename Warp>
KVCAL_WARP_BODY unsigned insert_slot(Warp& warp, std::uint32_t* list, unsigned slots, std::uint32_t slot) {
  const std::uint32_t rank = slot_rank(slot);
  unsigned place = 0;
  KVCAL_ROLLED
  for (unsigned base = 0; base < slots; base += kLanes) {
    typename Warp::template PerLane<bool> better;
    warp.each([&](unsigned lane) {
      const unsigned i = base + lane;
      better[lane] = i < slots && slot_rank(list[i]) > rank;
    });
    place += count_bits(warp.ballot(better));
  }
  if (place >= slots) return 1;
  const unsigned dropped = is_nothing(slot_delta(list[slots - 1])) ? 0 : 1;
  constexpr unsigned kParts = KVCAL_MOST_SLOTS / kLanes;
  typename Warp::template PerLane<std::uint32_t> moved[kParts];
  KVCAL_UNROLL
  for (unsigned part = 0; part < kParts; ++part) {
    warp.each([&](unsigned lane) {
      const unsigned i = part * kLanes + lane;
      if (i < slots) moved[part][lane] = i < place ? list[i] : i == place ? slot : list[i - 1];
    });
  }
  warp.sync();
  KVCAL_UNROLL
  for (unsigned part = 0; part < kParts; ++part) {
    warp.each([&](unsigned lane) {
      const unsigned i = part * kLanes + lane;
      if (i < slots) list[i] = moved[part][lane];
    });
  }
  warp.sync();
  return dropped;
}

/// The list to its place in the record.
template <typename Warp>
KVCAL_WARP_BODY void store_slots(Warp& warp, const std::uint32_t* list, unsigned slots,
                                 std::uint32_t* stored) {
  warp.each([&](unsigned lane) {
    KVCAL_ROLLED
    for (unsigned i = lane; i < slots; i += kLanes) stored[i] = list[i];
  });
}

}  // namespace kvcal::codec
