// apps/base64.h: bytes as text (RFC 4648, section 4, with padding): arrays in a page.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace kvcal::apps {

[[nodiscard]] std::string base64_of(std::span<const std::byte> bytes);

/// The numbers as little-endian float32.
[[nodiscard]] std::string base64_of(const std::vector<float>& numbers);

}  // namespace kvcal::apps
