#include "apps/base64.h"

#include <algorithm>
#include <bit>
#include <cstdint>

namespace kvcal::apps {

static_assert(std::endian::native == std::endian::little);

std::string base64_of(std::span<const std::byte> bytes) {
  constexpr const char* kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t given = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t k = 0; k < given; ++k)
      group |= std::to_integer<std::uint32_t>(bytes[i + k]) << (16 - 8 * k);
    for (std::size_t k = 0; k < 4; ++k) text += k <= given ? kDigits[group >> (18 - 6 * k) & 63U] : '=';
  }
  return text;
}

std::string base64_of(const std::vector<float>& numbers) {
  return base64_of(std::as_bytes(std::span(numbers)));
}

}  // namespace kvcal::apps
