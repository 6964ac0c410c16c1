// formats/tokenizer/internal/tokenizer_regex_class.h: character classes of Oniguruma, written for PCRE2.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "formats/tokenizer/internal/unicode.h"

namespace kvcal::formats {

/// A set of characters on its way from one syntax to the other. Categories stay categories as long as they
/// can, since PCRE2 finds those by a table; what its Unicode data would make differ is written out range by
/// range.
class CharacterClass {
 public:
  static CharacterClass of_ranges(const CodePointSet& ranges);
  static CharacterClass of_categories(CategoryMask mask);
  /// A property (\p{name}) or, with `posix`, a bracket ([:name:]).
  /// Throws InvalidInput where the name is unknown.
  static CharacterClass of_property(std::string_view name, bool posix);
  /// 's', 'd', 'w', 'h': the small letter of the shorthand. Oniguruma's \w knows the superscripts and
  /// fractions of Latin-1 where it stands alone, and not in brackets.
  static CharacterClass of_shorthand(char letter, bool in_brackets = false);

  [[nodiscard]] CharacterClass complement() const;
  [[nodiscard]] CharacterClass united(const CharacterClass& other) const;
  [[nodiscard]] CharacterClass intersected(const CharacterClass& other) const;

  /// As an item of a PCRE2 pattern: [ ... ].
  [[nodiscard]] std::string pattern() const;

 private:
  [[nodiscard]] CodePointSet set() const;
  CodePointSet ranges_;    ///< explicit members
  CategoryMask mask_ = 0;  ///< categories, all of whose members belong to it
  bool negated_ = false;   ///< the complement of all that
};

/// Reads a bracketed class that begins at pattern[at] == '['; moves `at` behind its ']'.
[[nodiscard]] CharacterClass read_bracket_class(std::string_view pattern, std::size_t& at);

/// The code point of an escape that stands for one character (\n, \x41, \u00e9, \x{...}, \.),
/// pattern[at] == '\\'; moves `at`.
[[nodiscard]] char32_t read_character_escape(std::string_view pattern, std::size_t& at, bool in_class);

/// \p{...} or \P{...} at pattern[at]; moves `at`.
[[nodiscard]] CharacterClass read_property(std::string_view pattern, std::size_t& at);

[[noreturn]] void refuse_pattern(std::string_view pattern, std::size_t at, std::string_view reason);

}  // namespace kvcal::formats
