// formats/tokenizer/internal/tokenizer_regex.h: the regular expressions of tokenizer.json, which are
// Oniguruma's (its own syntax, less callouts), run by Oniguruma with the reference's Unicode (oniguruma_unicode.h).
//
// A pattern and what it is let loose on come from outside, so both are limited:
//   compiling   patterns of up to 16 KiB, groups up to 128 deep, no group calls (\g<name>, whose compilation
//               takes time exponential in the pattern's length): some seconds and 200 MiB at the
//               worst
//   searching   10 million retries for a match, at which the reference panics; 2^24 entries of the match
//               stack (half a GiB); 10 seconds and 10 microseconds for each byte of the text, looked at
//               between matches and between the places that a search tries
#pragma once

#include <cstddef>
#include <memory>
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
  /// Throws InvalidInput naming the pattern and what is wrong with it: a syntax error, a limit, or a construct
  /// that is refused.
  static TokenizerRegex from_oniguruma(std::string_view pattern);
  /// A pattern that matches the text itself, and the empty string everywhere if it is empty.
  static TokenizerRegex from_literal(std::string_view text);

  ~TokenizerRegex();
  TokenizerRegex(TokenizerRegex&&) noexcept;
  TokenizerRegex& operator=(TokenizerRegex&&) noexcept;

  /// The text cut at every match, in order and without gaps; empty matches are kept. A search that exceeds the
  /// limits throws InvalidInput naming the pattern. `text` must be valid UTF-8.
  [[nodiscard]] std::vector<PatternSpan> find_spans(std::string_view text) const;

 private:
  struct Compiled;
  explicit TokenizerRegex(std::unique_ptr<Compiled> compiled);
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace kvcal::formats
