// cuda/kernels/lane_numbers.h: what one lane holds of a row or a tile, and its loads and stores, as wide as they can be.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/kernels/cache_view.h"

namespace kvcal::codec {

/// A lane's numbers of a row: channels lane * kCount and the following.
template <unsigned kCount>
struct LaneNumbers {
  float x[kCount];
};
template <unsigned kCount>
struct LaneKeys {
  std::uint32_t key[kCount];
};
template <unsigned kCount>
struct LaneDeltas {
  std::uint16_t delta[kCount];
};
/// A lane's words of a tile.
template <unsigned kWords>
struct LaneWords {
  std::uint32_t w[kWords];
};

/// What one load or store moves; `from` and `to` are aligned to kBytes.
template <unsigned kBytes>
struct alignas(kBytes) Chunk {
  std::uint32_t word[kBytes / 4];
};

#ifdef __CUDA_ARCH__
// As the built-in types, which nvcc moves at once.
__device__ __forceinline__ void move_chunk(const void* from, Chunk<16>& to) {
  const uint4 x = *static_cast<const uint4*>(from);
  to = {{x.x, x.y, x.z, x.w}};
}
__device__ __forceinline__ void move_chunk(const void* from, Chunk<8>& to) {
  const uint2 x = *static_cast<const uint2*>(from);
  to = {{x.x, x.y}};
}
__device__ __forceinline__ void move_chunk(const void* from, Chunk<4>& to) {
  to.word[0] = *static_cast<const std::uint32_t*>(from);
}
__device__ __forceinline__ void move_chunk(const Chunk<16>& from, void* to) {
  *static_cast<uint4*>(to) = make_uint4(from.word[0], from.word[1], from.word[2], from.word[3]);
}
__device__ __forceinline__ void move_chunk(const Chunk<8>& from, void* to) {
  *static_cast<uint2*>(to) = make_uint2(from.word[0], from.word[1]);
}
__device__ __forceinline__ void move_chunk(const Chunk<4>& from, void* to) {
  *static_cast<std::uint32_t*>(to) = from.word[0];
}
#endif

template <unsigned kBytes>
KVCAL_HOST_DEVICE Chunk<kBytes> load_chunk(const void* from) {
  Chunk<kBytes> chunk;
#ifdef __CUDA_ARCH__
  move_chunk(from, chunk);
#else
  std::memcpy(&chunk, from, kBytes);
#endif
  return chunk;
}
template <unsigned kBytes>
KVCAL_HOST_DEVICE void store_chunk(const Chunk<kBytes>& chunk, void* to) {
#ifdef __CUDA_ARCH__
  move_chunk(chunk, to);
#else
  std::memcpy(to, &chunk, kBytes);
#endif
}

/// kCount numbers from number `at` on, which is a multiple of kCount, as `from.data` is of 16 bytes.
template <unsigned kCount>
KVCAL_HOST_DEVICE void load_numbers(const NumbersView& from, std::int64_t at, LaneNumbers<kCount>& x) {
  static_assert(kCount == 2 || kCount == 4 || kCount == 8);
  if (from.type == KVCAL_FLOAT32) {
    const float* data = static_cast<const float*>(from.data) + at;
    constexpr unsigned kAtOnce = kCount < 4 ? kCount : 4;
    KVCAL_UNROLL
    for (unsigned i = 0; i < kCount; i += kAtOnce) {
      const auto chunk = load_chunk<4 * kAtOnce>(data + i);
      KVCAL_UNROLL
      for (unsigned k = 0; k < kAtOnce; ++k) x.x[i + k] = bits_float(chunk.word[k]);
    }
    return;
  }
  const auto chunk = load_chunk<2 * kCount>(static_cast<const std::uint16_t*>(from.data) + at);
  KVCAL_UNROLL
  for (unsigned i = 0; i < kCount; ++i) {
    const auto bits = static_cast<std::uint16_t>(chunk.word[i / 2] >> (16 * (i % 2)));
    x.x[i] = from.type == KVCAL_FLOAT16 ? half_to_float(bits) : bfloat16_to_float(bits);
  }
}

/// The lane's words of a tile, in the groups of record_format.h. Calls move<words>(offset, first).
template <unsigned kWords, typename Move>
KVCAL_HOST_DEVICE void for_word_groups(unsigned lane, const Move& move) {
  constexpr unsigned kFours = kWords / 4 * 4;
  if constexpr (kFours > 0) {
    KVCAL_UNROLL
    for (unsigned w = 0; w < kFours; w += 4) move.template operator()<4>(word_offset(kWords, w, lane), w);
  }
  if constexpr (kWords % 4 >= 2) move.template operator()<2>(word_offset(kWords, kFours, lane), kFours);
  if constexpr (kWords % 2 == 1)
    move.template operator()<1>(word_offset(kWords, kWords - 1, lane), kWords - 1);
}

template <unsigned kWords>
KVCAL_HOST_DEVICE void load_words(const std::uint8_t* tile, unsigned lane, LaneWords<kWords>& words) {
  for_word_groups<kWords>(lane, [&]<unsigned kGroup>(unsigned offset, unsigned first) {
    const auto chunk = load_chunk<4 * kGroup>(tile + offset);
    KVCAL_UNROLL
    for (unsigned k = 0; k < kGroup; ++k) words.w[first + k] = chunk.word[k];
  });
}

template <unsigned kWords>
KVCAL_HOST_DEVICE void store_words(std::uint8_t* tile, unsigned lane, const LaneWords<kWords>& words) {
  for_word_groups<kWords>(lane, [&]<unsigned kGroup>(unsigned offset, unsigned first) {
    Chunk<4 * kGroup> chunk;
    KVCAL_UNROLL
    for (unsigned k = 0; k < kGroup; ++k) chunk.word[k] = words.w[first + k];
    store_chunk(chunk, tile + offset);
  });
}

}  // namespace kvcal::codec
