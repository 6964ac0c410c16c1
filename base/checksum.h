// base/checksum.h: a fast checksum that finds accidental damage in large files; not a cryptographic hash.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace kvcal::base {

/// 64 bits over all bytes and their number: any single changed byte changes it. Words are mixed in four lanes
/// by odd multipliers and rotations, each step a bijection of the lane for a given word.
[[nodiscard]] inline std::uint64_t checksum(std::span<const std::byte> bytes) {
  constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio
  constexpr std::size_t kLanes = 4;
  constexpr std::size_t kWord = sizeof(std::uint64_t);
  std::uint64_t lanes[kLanes] = {1, 2, 3, 4};
  const auto mix = [](std::uint64_t state, std::uint64_t word) {
    return std::rotl((state ^ word) * kOdd, 29);
  };
  std::size_t at = 0;
  for (; at + kLanes * kWord <= bytes.size(); at += kLanes * kWord) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes.data() + at + lane * kWord, kWord);
      lanes[lane] = mix(lanes[lane], word);
    }
  }
  std::uint64_t sum = bytes.size();
  for (const std::uint64_t lane : lanes) sum = mix(sum, lane);
  for (; at < bytes.size(); ++at) sum = mix(sum, std::to_integer<std::uint64_t>(bytes[at]));
  return sum;
}

}  // namespace kvcal::base
