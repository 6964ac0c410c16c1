// formats/tokenizer/internal/unicode_tables.h: where the reference's Unicode data differ from those of
// Unicode 14, range by range. tests/formats/tokenizer_reference_test.py checks every code point against the
// reference.
#pragma once

#include <span>

#include "formats/tokenizer/internal/unicode.h"

namespace kvcal::formats {

/// What the regular expressions' version of Unicode has and version 14 has not.
[[nodiscard]] std::span<const RecentRange> recent_table();
/// Marks that StripAccents keeps: they are younger than its data. Normal forms leave them alone, too.
[[nodiscard]] std::span<const CodePointRange> recent_marks();
/// Further characters whose decompositions are younger than the normal forms' data.
[[nodiscard]] std::span<const CodePointRange> recent_decompositions();
/// Punctuation that the pre-tokenizer Punctuation does not know.
[[nodiscard]] std::span<const CodePointRange> recent_punctuation();
/// Alphabetic characters and digits of \w that are not of L, M, Nd, Nl or Pc.
[[nodiscard]] std::span<const CodePointRange> word_extra();

}  // namespace kvcal::formats
