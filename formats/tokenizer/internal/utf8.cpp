#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

/// What table 3-7 allows after a first byte: how many bytes follow, and the range of the one that comes next.
struct Lead {
  int following;
  unsigned char low;
  unsigned char high;
};

Lead lead_of(unsigned char first) {
  if (first >= 0xC2 && first <= 0xDF) return {1, 0x80, 0xBF};
  if (first == 0xE0) return {2, 0xA0, 0xBF};
  if (first == 0xED) return {2, 0x80, 0x9F};
  if (first >= 0xE1 && first <= 0xEF) return {2, 0x80, 0xBF};
  if (first == 0xF0) return {3, 0x90, 0xBF};
  if (first >= 0xF1 && first <= 0xF3) return {3, 0x80, 0xBF};
  if (first == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Char utf8_at(std::string_view text, std::size_t at) {
  const auto first = static_cast<unsigned char>(text[at]);
  if (first < 0x80) return {first, 1, true};
  const Lead lead = lead_of(first);
  if (lead.following == 0) return {kReplacement, 1, false};
  char32_t code_point = first & (0x3F >> lead.following);
  for (int i = 1; i <= lead.following; ++i) {
    const std::size_t where = at + static_cast<std::size_t>(i);
    if (where >= text.size()) return {kReplacement, static_cast<std::size_t>(i), false};
    const auto byte = static_cast<unsigned char>(text[where]);
    const unsigned char low = i == 1 ? lead.low : 0x80;
    const unsigned char high = i == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) return {kReplacement, static_cast<std::size_t>(i), false};
    code_point = (code_point << 6) | (byte & 0x3FU);
  }
  return {code_point, static_cast<std::size_t>(lead.following) + 1, true};
}

std::size_t utf8_length_before(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return end - begin;
}

std::optional<std::size_t> first_invalid_utf8(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const Utf8Char next = utf8_at(text, at);
    if (!next.valid) return at;
    at += next.length;
  }
  return std::nullopt;
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto put = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | (code_point >> 6));
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | (code_point >> 12));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | (code_point >> 18));
    put(0x80 | ((code_point >> 12) & 0x3F));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

}  // namespace kvcal::formats
