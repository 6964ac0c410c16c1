// cuda/record_layout.h: where things lie in a paged record (record_format.h): its parts, and each code's bits
// in a tile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "cuda/kernels/record_format.h"

namespace kvcal::codec {

/// bits: 2, 3 or 4; dims: 64, 128 or 256; page_tokens: 16 or 64; slots: multiples of 4, 0 to 64; block: a power of two that
/// divides value_dim, or 0: values are not turned.
/// Throws base::InvalidInput naming what is out of range.
[[nodiscard]] KvcalRecordLayout make_record_layout(std::int64_t key_bits, std::int64_t value_bits,
                                                   std::int64_t key_dim, std::int64_t value_dim,
                                                   std::int64_t page_tokens, std::int64_t key_slots,
                                                   std::int64_t value_slots,
                                                   std::int64_t value_rotation_block = 0);
/// With codes of the same bits for keys and values, which are not turned.
[[nodiscard]] KvcalRecordLayout make_record_layout(std::int64_t bits, std::int64_t key_dim,
                                                   std::int64_t value_dim, std::int64_t page_tokens,
                                                   std::int64_t key_slots, std::int64_t value_slots);

/// The codes of 16 tokens and one kv head: of keys or of values.
struct CodeTile {
  std::size_t bits = 0, dim = 0;  ///< as make_record_layout() takes them
  bool keys = true;

  [[nodiscard]] std::size_t bytes() const { return KVCAL_TILE_TOKENS * dim * bits / 8; }
  /// row: the token, counted from the tile's first, 0 to 15; channel: 0 to dim - 1. tile: bytes(), or more. put() finds
  /// the code's bits 0.
  void put(std::span<std::uint8_t> tile, std::size_t row, std::size_t channel, unsigned code) const;
  [[nodiscard]] unsigned get(std::span<const std::uint8_t> tile, std::size_t row, std::size_t channel) const;

 private:
  /// Which bit of the tile, counted from the lowest of its first byte, is bit b of the code.
  [[nodiscard]] std::size_t bit(std::size_t row, std::size_t channel, std::size_t b) const;
};

/// A record's 16-bit numbers, little-endian.
inline void put_u16(std::span<std::uint8_t> to, std::size_t at, std::uint16_t value) {
  to[at] = static_cast<std::uint8_t>(value & 0xffU);
  to[at + 1] = static_cast<std::uint8_t>(value >> 8);
}
[[nodiscard]] inline std::uint16_t get_u16(std::span<const std::uint8_t> from, std::size_t at) {
  return static_cast<std::uint16_t>(from[at] | from[at + 1] << 8);
}

}  // namespace kvcal::codec
