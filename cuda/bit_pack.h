// cuda/bit_pack.h: codes of 2, 3 or 4 bits in bytes without gaps.
//
// Little-endian bit order: bit b of code i is bit (i * bits + b) of the stream, and bit n of the stream is
// bit n % 8 (counted from the least significant) of byte n / 8. So 8 codes fill exactly `bits` bytes, a code
// of 3 bits may straddle two bytes, and the unused bits of the last byte are 0. The codes 1, 2, 3 of 3 bits
// are the bytes d1 00.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvcal::codec {

/// ceil(count * bits / 8). Throws base::WrongUsage where bits is not 2, 3 or 4;
/// base::InvalidInput on overflow.
[[nodiscard]] std::size_t packed_bytes(std::size_t count, int bits);

/// Throws base::InvalidInput naming the first code that has more than `bits` bits; base::WrongUsage as above.
[[nodiscard]] std::vector<std::uint8_t> pack_codes(std::span<const std::uint8_t> codes, int bits);

/// The first `count` codes. Throws base::InvalidInput where `packed` is not packed_bytes(count, bits) long.
[[nodiscard]] std::vector<std::uint8_t> unpack_codes(std::span<const std::uint8_t> packed, std::size_t count,
                                                     int bits);

}  // namespace kvcal::codec
