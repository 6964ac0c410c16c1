// formats/tokenizer/internal/pretokenizer.h: the pre-tokenizers of tokenizer.json:
// how a text is cut into the words that the model sees.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer/internal/tokenizer_regex.h"

namespace kvcal::formats {

/// A piece of the text. at_origin: it begins where the whole input begins.
struct TextPiece {
  std::string text;
  bool at_origin = false;
};

/// What becomes of the delimiters that a split finds.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

/// Where Metaspace puts its mark in front of a piece that lacks it.
enum class PrependScheme { kFirst, kNever, kAlways };

/// GPT-2's alphabet: each byte of a text as a printable character (a space becomes U+0120).
[[nodiscard]] std::string bytes_to_characters(std::string_view text);

/// Steps, one after the other; none leaves a text whole. Pieces are never empty.
class PreTokenizer {
 public:
  void add_split(TokenizerRegex pattern, SplitBehavior behavior, bool invert);
  void add_byte_level(bool add_prefix_space, bool use_regex);
  void add_metaspace(std::string mark, PrependScheme scheme, bool split);
  void add_digits(bool individual_digits);
  void add_punctuation(SplitBehavior behavior);
  void add_whitespace();        ///< words (\w+) and runs of the rest ([^\w\s]+); white space goes
  void add_whitespace_split();  ///< at white space, which goes

  /// Replaces `pieces` by what they are cut into.
  void apply(std::vector<TextPiece>& pieces) const;

 private:
  using Step = std::function<void(TextPiece&& piece, std::vector<TextPiece>& out)>;
  std::vector<Step> steps_;
};

}  // namespace kvcal::formats
