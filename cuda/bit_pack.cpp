#include "cuda/bit_pack.h"

#include "base/checked.h"
#include "base/error.h"

namespace kvcal::codec {

std::size_t packed_bytes(std::size_t count, int bits) {
  if (bits < 2 || bits > 4) throw base::WrongUsage(base::concat("codes have 2, 3 or 4 bits, not ", bits));
  const std::size_t total = base::checked_multiply(count, static_cast<std::size_t>(bits), "packed codes");
  return total / 8 + (total % 8 != 0 ? 1 : 0);
}

std::vector<std::uint8_t> pack_codes(std::span<const std::uint8_t> codes, int bits) {
  std::vector<std::uint8_t> packed(packed_bytes(codes.size(), bits));
  const auto width = static_cast<std::size_t>(bits);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    if (codes[i] >> width != 0) {
      throw base::InvalidInput(
          base::concat("code ", i, " is ", int{codes[i]}, ", which ", bits, " bits cannot hold"));
    }
    const std::size_t byte = i * width / 8;
    const unsigned shifted = static_cast<unsigned>(codes[i]) << (i * width % 8);
    packed[byte] = static_cast<std::uint8_t>(packed[byte] | (shifted & 0xffU));
    if (shifted > 0xffU) packed[byte + 1] = static_cast<std::uint8_t>(shifted >> 8);
  }
  return packed;
}

std::vector<std::uint8_t> unpack_codes(std::span<const std::uint8_t> packed, std::size_t count, int bits) {
  const std::size_t expected = packed_bytes(count, bits);
  if (packed.size() != expected) {
    throw base::InvalidInput(
        base::concat(count, " codes of ", bits, " bits take ", expected, " bytes, not ", packed.size()));
  }
  std::vector<std::uint8_t> codes(count);
  const auto width = static_cast<std::size_t>(bits);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t byte = i * width / 8;
    const unsigned high = byte + 1 < packed.size() ? packed[byte + 1] : 0U;
    const unsigned pair = packed[byte] | (high << 8);
    codes[i] = static_cast<std::uint8_t>((pair >> (i * width % 8)) & ((1U << width) - 1U));
  }
  return codes;
}

}  // namespace kvcal::codec
