#include "formats/internal/hdf5_checksum.h"

#include <algorithm>
#include <array>
#include <bit>

namespace kvcal::formats {
namespace {

using State = std::array<std::uint32_t, 3>;

void mix(State& s) {
  // a -= c, a ^= rot(c), c += b; then the same with the letters moved on by one.
  constexpr std::array<int, 6> kRotations{4, 6, 8, 16, 19, 4};
  for (std::size_t i = 0; i < kRotations.size(); ++i) {
    std::uint32_t& a = s[i % 3];
    std::uint32_t& b = s[(i + 1) % 3];
    std::uint32_t& c = s[(i + 2) % 3];
    a -= c;
    a ^= std::rotl(c, kRotations[i]);
    c += b;
  }
}

void finish(State& s) {
  constexpr std::array<int, 7> kRotations{14, 11, 25, 16, 4, 14, 24};
  for (std::size_t i = 0; i < kRotations.size(); ++i) {
    std::uint32_t& target = s[(i + 2) % 3];
    const std::uint32_t source = s[(i + 1) % 3];
    target ^= source;
    target -= std::rotl(source, kRotations[i]);
  }
}

}  // namespace

std::uint32_t hdf5_checksum(std::span<const std::byte> bytes) {
  State s;
  s.fill(0xdeadbeefU + static_cast<std::uint32_t>(bytes.size()));
  if (bytes.empty()) return s[2];
  for (std::size_t begin = 0; begin < bytes.size(); begin += 12) {
    const std::size_t end = std::min(bytes.size(), begin + 12);
    for (std::size_t i = begin; i < end; ++i) {
      s[(i - begin) / 4] += static_cast<std::uint32_t>(bytes[i]) << (8 * ((i - begin) % 4));
    }
    if (end < bytes.size()) {
      mix(s);
    } else {
      finish(s);
    }
  }
  return s[2];
}

}  // namespace kvcal::formats
