// formats/tokenizer/internal/oniguruma_unicode.h: UTF-8 for Oniguruma with the Unicode of the reference
// (PyPI's `tokenizers`, whose Oniguruma has Unicode 16), whatever older version the installed library has
// (6.9.8: 14). An encoding is Oniguruma's own way to say what a character is: \w, \b, \p{...}, [[:...:]] and
// case folding all ask it.
//
// Followed on every code point: the general categories, \w \d \s \h, the POSIX brackets, Alphabetic,
// Lowercase, Uppercase, Math, the ID_ and XID_ properties, scripts, and simple case folding. Refused as
// unknown: properties whose members changed and that no tokenizer asks for (kRefused in the .cpp), and names
// that the installed library does not have (scripts and blocks younger than it). \X is the library's.
#pragma once

#include <oniguruma.h>

namespace kvcal::formats {

/// The encoding, made at the first call; it lives as long as the process.
[[nodiscard]] OnigEncoding reference_utf8();

}  // namespace kvcal::formats
