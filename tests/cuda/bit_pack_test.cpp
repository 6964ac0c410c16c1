#include "cuda/bit_pack.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "base/error.h"

namespace kvcal::codec {
namespace {

using Bytes = std::vector<std::uint8_t>;

TEST(BitPack, GoldenBytes) {
  // 2 bits: 0b11'10'01'00, then 0b01 alone. 3 bits: 1 | 2 << 3 | 3 << 6 = 0xd1. 4 bits: the lower nibble
  // first.
  EXPECT_EQ(pack_codes(Bytes{0, 1, 2, 3, 1}, 2), (Bytes{0xe4, 0x01}));
  EXPECT_EQ(pack_codes(Bytes{1, 2, 3}, 3), (Bytes{0xd1, 0x00}));
  EXPECT_EQ(pack_codes(Bytes{0, 1, 2, 3, 4, 5, 6, 7}, 3), (Bytes{0x88, 0xc6, 0xfa}));
  EXPECT_EQ(pack_codes(Bytes{0xa, 0xb, 0xc}, 4), (Bytes{0xba, 0x0c}));
}

TEST(BitPack, UnpackIsTheInverseForEveryWidthAndSize) {
  std::mt19937 random(1);
  for (const int bits : {2, 3, 4}) {
    for (std::size_t size = 0; size <= 131; ++size) {
      Bytes codes(size);
      for (auto& code : codes) code = static_cast<std::uint8_t>(random() & ((1U << bits) - 1U));
      const Bytes packed = pack_codes(codes, bits);
      EXPECT_EQ(packed.size(), (size * static_cast<std::size_t>(bits) + 7) / 8);
      EXPECT_EQ(unpack_codes(packed, size, bits), codes) << bits << " bits, " << size << " codes";
    }
  }
}

TEST(BitPack, UnusedBitsAreZero) {
  for (const int bits : {2, 3, 4}) {
    const auto largest = static_cast<std::uint8_t>((1 << bits) - 1);
    EXPECT_EQ(pack_codes(Bytes{largest}, bits), Bytes{largest});
  }
}

TEST(BitPack, RefusesWhatDoesNotFit) {
  EXPECT_THROW((void)pack_codes(Bytes{0, 8}, 3), base::InvalidInput);
  EXPECT_THROW((void)pack_codes(Bytes{0}, 1), base::WrongUsage);
  EXPECT_THROW((void)pack_codes(Bytes{0}, 5), base::WrongUsage);
  EXPECT_THROW((void)unpack_codes(Bytes{0}, 3, 3), base::InvalidInput);
  EXPECT_THROW((void)unpack_codes(Bytes{0, 0, 0}, 3, 3), base::InvalidInput);
  EXPECT_THROW((void)packed_bytes(std::numeric_limits<std::size_t>::max() / 2, 4), base::InvalidInput);
}

}  // namespace
}  // namespace kvcal::codec
