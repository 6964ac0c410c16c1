// cuda/kernels/record_math.h: the arithmetic of a record (record_format.h), the same for host and device: where a code
// lies, how words are filled, how outliers are ranked.
#pragma once

#include <cstdint>

#include "cuda/kernels/codec_math.h"
#include "cuda/kernels/quantile.h"
#include "cuda/kernels/record_format.h"

namespace kvcal::codec {

inline constexpr unsigned kLanes = 32;
inline constexpr unsigned kTileTokens = KVCAL_TILE_TOKENS;
inline constexpr unsigned kStripChannels = KVCAL_STRIP_CHANNELS;

/// Words of 32 bits that a lane owns of a tile.
KVCAL_HOST_DEVICE constexpr unsigned words_per_lane(unsigned dim, unsigned bits) {
  return dim * bits / 64;
}

/// Where word `word` of `words` of a lane begins in its tile, in bytes.
KVCAL_HOST_DEVICE constexpr unsigned word_offset(unsigned words, unsigned word, unsigned lane) {
  const unsigned fours = words / 4 * 4, left = words - fours;
  if (word < fours) return word / 4 * 512 + lane * 16 + word % 4 * 4;
  const unsigned rest = word - fours;
  if (left >= 2 && rest < 2) return fours * 128 + lane * 8 + rest * 4;
  return fours * 128 + (left & 2U) * 128 + lane * 4;
}

/// A number's place in the operand: whose lane, which step, and which nibble 2 j + e of it.
struct CodePlace {
  unsigned lane, step, nibble;
};

/// row: of the tile, 0 to 15.
KVCAL_HOST_DEVICE constexpr CodePlace key_place(unsigned row, unsigned channel, unsigned dim) {
  const unsigned high = channel >= dim / 2 ? 1U : 0U, c = channel - high * (dim / 2);
  const unsigned j = (row >> 3) | (high << 1);
  return {4 * (row & 7U) + ((c >> 1) & 3U), c >> 3, 2 * j + (c & 1U)};
}

KVCAL_HOST_DEVICE constexpr CodePlace value_place(unsigned row, unsigned channel) {
  const unsigned j = ((channel >> 3) & 1U) | (row >> 3 << 1);
  return {4 * (channel & 7U) + ((row >> 1) & 3U), channel >> 4, 2 * j + (row & 1U)};
}

/// The token of nibble n of a lane, in keys and in values.
KVCAL_HOST_DEVICE constexpr unsigned key_row(unsigned lane, unsigned nibble) {
  return lane / 4 + 8 * (nibble / 2 & 1U);
}
KVCAL_HOST_DEVICE constexpr unsigned value_row(unsigned lane, unsigned nibble) {
  return 2 * (lane & 3U) + (nibble & 1U) + 8 * (nibble / 4);
}

KVCAL_HOST_DEVICE constexpr unsigned key_channel(unsigned lane, unsigned step, unsigned nibble,
                                                 unsigned dim) {
  return 8 * step + 2 * (lane & 3U) + (nibble & 1U) + nibble / 4 * (dim / 2);
}
KVCAL_HOST_DEVICE constexpr unsigned value_channel(unsigned lane, unsigned step, unsigned nibble) {
  return 16 * step + lane / 4 + 8 * (nibble / 2 & 1U);
}

/// Puts a step's 8 codes, each in its nibble of `spread`, into a lane's words, which are 0 where they go.
template <int Bits>
KVCAL_HOST_DEVICE void put_step(std::uint32_t spread, unsigned step, std::uint32_t* words) {
  if constexpr (Bits == 4) {
    words[step] = spread;
  } else if constexpr (Bits == 2) {
    words[step / 2] |= spread << (2 * (step & 1U));
  } else {
    std::uint32_t* group = words + step / 4 * 3;
    if (step % 4 < 3) {
      group[step % 4] |= spread;
    } else {
      for (unsigned b = 0; b < 3; ++b) group[b] |= (spread >> b & 0x11111111U) << 3;
    }
  }
}

/// The step's 8 codes, each in its nibble.
template <int Bits>
KVCAL_HOST_DEVICE std::uint32_t get_step(unsigned step, const std::uint32_t* words) {
  if constexpr (Bits == 4) {
    return words[step];
  } else if constexpr (Bits == 2) {
    return words[step / 2] >> (2 * (step & 1U)) & 0x33333333U;
  } else {
    const std::uint32_t* group = words + step / 4 * 3;
    if (step % 4 < 3) return group[step % 4] & 0x77777777U;
    return (group[0] >> 3 & 0x11111111U) | (group[1] >> 2 & 0x22222222U) | (group[2] >> 1 & 0x44444444U);
  }
}

/// An outlier in its slot.
KVCAL_HOST_DEVICE constexpr std::uint32_t make_slot(unsigned index, std::uint16_t delta) {
  return index | static_cast<std::uint32_t>(delta) << 16;
}
KVCAL_HOST_DEVICE constexpr unsigned slot_index(std::uint32_t slot) {
  return slot & 0xffffU;
}
KVCAL_HOST_DEVICE constexpr std::uint16_t slot_delta(std::uint32_t slot) {
  return static_cast<std::uint16_t>(slot >> 16);
}
/// The greater goes first: by |delta|, of equal ones the lower index. Every slot that is in use beats an empty one.
KVCAL_HOST_DEVICE constexpr std::uint32_t slot_rank(std::uint32_t slot) {
  return (slot & 0x7fff0000U) | (0xffffU - (slot & 0xffffU));
}

/// Not NaN and not infinite.
KVCAL_HOST_DEVICE bool is_finite(float x) {
  return x - x == 0.0F;
}

/// x as it is stored: 0 where it is not finite, within fp16, and -0 as 0.
KVCAL_HOST_DEVICE float storable(float x) {
  if (!is_finite(x)) return 0.0F;
  const float low = x > -kHalfMax ? x : -kHalfMax, within = low < kHalfMax ? low : kHalfMax;
  return add_rn(within, 0.0F);
}

/// x as fp16, +-65504 where it is beyond.
KVCAL_HOST_DEVICE std::uint16_t saturated_half(float x) {
  return float_to_half(x < -kHalfMax ? -kHalfMax : x > kHalfMax ? kHalfMax : x);
}

/// What a code reads as: fp16 bits. All that is stored is fp16, so that this can overflow only where a level lies far
/// beyond 1.
KVCAL_HOST_DEVICE std::uint16_t read_code(unsigned code, float scale, float zero, const float* levels) {
  return saturated_half(add_rn(multiply_rn(levels[code], scale), zero));
}

/// The delta that brings what is read to x: fp16 bits; 0 where there is nothing to mend.
KVCAL_HOST_DEVICE std::uint16_t delta_of(float x, std::uint16_t read) {
  return saturated_half(add_rn(x, -half_to_float(read)));
}
/// Whether that delta is beyond fp16.
KVCAL_HOST_DEVICE bool is_too_far(float x, std::uint16_t read) {
  const float delta = add_rn(x, -half_to_float(read));
  return delta > kHalfMax || delta < -kHalfMax;
}
KVCAL_HOST_DEVICE bool is_nothing(std::uint16_t delta) {
  return (delta & 0x7fffU) == 0;
}
KVCAL_HOST_DEVICE std::uint16_t add_delta(std::uint16_t read, std::uint16_t delta) {
  return saturated_half(add_rn(half_to_float(read), half_to_float(delta)));
}

/// nearest_code() of codec_math.h by halving: `Bits` comparisons. midpoints: [2^Bits - 1], ascending.
template <int Bits>
KVCAL_HOST_DEVICE unsigned search_code(float u, const float* midpoints) {
  const char* bytes = reinterpret_cast<const char*>(midpoints);
  unsigned at = 0;  // four times the code: in bytes, an address is one addition away
  KVCAL_UNROLL
  for (int bit = Bits - 1; bit >= 0; --bit) {
    const unsigned half = 4U << bit;
    if (u > *reinterpret_cast<const float*>(bytes + at + half - 4)) at += half;
  }
  return at / 4;
}

/// Unsigned numbers in the order of floats; no NaN.
KVCAL_HOST_DEVICE std::uint32_t ordered_bits(float x) {
  const std::uint32_t bits = float_bits(x);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffU : 0x80000000U);
}
KVCAL_HOST_DEVICE float from_ordered_bits(std::uint32_t ordered) {
  return bits_float(ordered ^ ((ordered >> 31) != 0 ? 0x80000000U : 0xffffffffU));
}

}  // namespace kvcal::codec
