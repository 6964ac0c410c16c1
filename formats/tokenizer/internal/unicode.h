// formats/tokenizer/internal/unicode.h: the properties of characters that tokenizers ask for, equal on every
// code point to those of the reference implementation (PyPI's `tokenizers`), whose parts follow different
// versions of Unicode: its regular expressions version 16, its normalisation forms and its accents version 9,
// its punctuation version 8. The library beneath (utf8proc) has a version of its own; tables of the
// differences make up for it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvcal::formats {

/// In the order of utf8proc.
enum class GeneralCategory : std::uint8_t {
  Cn,
  Lu,
  Ll,
  Lt,
  Lm,
  Lo,
  Mn,
  Mc,
  Me,
  Nd,
  Nl,
  No,
  Pc,
  Pd,
  Ps,
  Pe,
  Pi,
  Pf,
  Po,
  Sm,
  Sc,
  Sk,
  So,
  Zs,
  Zl,
  Zp,
  Cc,
  Cf,
  Cs,
  Co
};

/// A set of general categories, a bit for each.
using CategoryMask = std::uint32_t;

constexpr CategoryMask mask_of(GeneralCategory category) {
  return CategoryMask{1} << static_cast<unsigned>(category);
}

/// The mask of a name: "Lu", "L", "LC", "Any" ... ; 0 where no category is called so.
[[nodiscard]] CategoryMask category_mask(std::string_view name);

/// Code points first to last, both in it.
struct CodePointRange {
  char32_t first;
  char32_t last;
};

/// A range that got its category after the oldest Unicode that utf8proc and Oniguruma may have (14).
struct RecentRange {
  char32_t first;
  char32_t last;
  GeneralCategory category;
};
[[nodiscard]] std::span<const RecentRange> recent_ranges();

[[nodiscard]] GeneralCategory general_category(char32_t code_point);

[[nodiscard]] bool is_white_space(char32_t code_point);  ///< the property White_Space
[[nodiscard]] std::span<const CodePointRange> white_space_ranges();
[[nodiscard]] bool is_rust_word(char32_t code_point);    ///< \w of the Rust crate regex
[[nodiscard]] bool is_numeric(char32_t code_point);      ///< Rust's char::is_numeric
[[nodiscard]] bool is_punctuation(char32_t code_point);  ///< what the pre-tokenizer Punctuation splits on
[[nodiscard]] bool is_accent(char32_t code_point);       ///< what the normalizer StripAccents drops

/// Rust's char::to_lowercase, one character at a time, appended to `out`.
void append_lowercase(std::string& out, char32_t code_point);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

/// The normal form of a valid UTF-8 text, as Unicode 9 defines it: what was assigned later stays as it is.
/// O(n log n) whatever the text (a run of combining marks is sorted, not bubbled).
[[nodiscard]] std::string normalize_unicode(std::string_view text, NormalForm form);

/// Ranges ascending and apart.
using CodePointSet = std::vector<CodePointRange>;
[[nodiscard]] CodePointSet set_of_categories(CategoryMask mask);
/// Sorts and joins ranges in any order.
[[nodiscard]] CodePointSet set_of_ranges(CodePointSet ranges);
[[nodiscard]] CodePointSet set_complement(const CodePointSet& set);
[[nodiscard]] CodePointSet set_union(const CodePointSet& a, const CodePointSet& b);
[[nodiscard]] CodePointSet set_intersection(const CodePointSet& a, const CodePointSet& b);

}  // namespace kvcal::formats
