// formats/tokenizer/internal/utf8.h: UTF-8 as the Unicode standard defines it (table 3-7):
// no surrogates, no overlong forms, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace kvcal::formats {

/// One character of a text. Where the bytes are not UTF-8: valid is false, code_point is U+FFFD, and length
/// covers the longest prefix of a sequence that could have become valid (at least 1), which is what Python
/// and the W3C replace by one U+FFFD.
struct Utf8Char {
  char32_t code_point;
  std::size_t length;
  bool valid;
};

/// The character that begins at `at`, which must be below text.size().
[[nodiscard]] Utf8Char utf8_at(std::string_view text, std::size_t at);

/// The length of the character that ends at `end` (0 < end <= text.size()), in a text that is valid.
[[nodiscard]] std::size_t utf8_length_before(std::string_view text, std::size_t end);

/// The offset of the first byte that is not UTF-8; none where all is.
[[nodiscard]] std::optional<std::size_t> first_invalid_utf8(std::string_view text);

void append_utf8(std::string& text, char32_t code_point);

}  // namespace kvcal::formats
