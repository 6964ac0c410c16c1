// formats/tokenizer/internal/tokenizer_regex.h: the regular expressions of tokenizer.json,
// which are Oniguruma's (Ruby syntax), run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace kvcal::formats {

/// A stretch of a text, in bytes, and whether the pattern matched it.
struct PatternSpan {
  std::size_t begin;
  std::size_t end;
  bool matched;
};

/// A compiled pattern. Immutable: any number of threads may search with one object.
class TokenizerRegex {
 public:
  /// Throws InvalidInput naming the pattern and what is wrong with it: a syntax error, or a construct that
  /// has no equal in PCRE2.
  static TokenizerRegex from_oniguruma(std::string_view pattern);
  /// A pattern that matches the text itself, and the empty string everywhere if it is empty.
  static TokenizerRegex from_literal(std::string_view text);

  ~TokenizerRegex();
  TokenizerRegex(TokenizerRegex&&) noexcept;
  TokenizerRegex& operator=(TokenizerRegex&&) noexcept;

  /// The text cut at every match, in order and without gaps; empty matches are kept. A search that exceeds
  /// PCRE2's limits throws InvalidInput. `text` must be valid UTF-8.
  [[nodiscard]] std::vector<PatternSpan> find_spans(std::string_view text) const;

 private:
  struct Compiled;
  explicit TokenizerRegex(std::unique_ptr<Compiled> compiled);
  std::unique_ptr<Compiled> compiled_;
};

/// The PCRE2 pattern (for UTF, UCP and MULTILINE) that matches what Oniguruma's Ruby syntax gives to
/// `pattern`. Character classes are written out with the Unicode data of unicode.h. Throws InvalidInput.
/// Where PCRE2 has no equal: absence operators, conditionals, multi-character case folding ((?i:ss) does not
/// match U+00DF), raw bytes above 0x7F, lookbehind of variable length.
[[nodiscard]] std::string pcre2_from_oniguruma(std::string_view pattern);

}  // namespace kvcal::formats
