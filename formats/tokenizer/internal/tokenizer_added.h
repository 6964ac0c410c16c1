// formats/tokenizer/internal/tokenizer_added.h: the added tokens of tokenizer.json,
// found in a text before it is cut any further.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace kvcal::formats {

/// One entry of added_tokens.
struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool special = false;
  /// Looked for, in its normalised form, in the normalised text; else in the raw text.
  bool normalized = false;
  bool single_word = false;  ///< only where no word character touches it
  bool lstrip = false;       ///< takes the white space before it
  bool rstrip = false;       ///< takes the white space behind it
};

/// A stretch of a text: an added token, or (id < 0) text.
struct AddedSpan {
  std::size_t begin;
  std::size_t end;
  std::int32_t id;
};

/// Finds added tokens, leftmost first and the longest of those that begin at one place, as the reference
/// does: a match that its flags then discard still uses up its characters.
class AddedTokenMatcher {
 public:
  /// `pattern` is what stands in the text: the token's content, normalised if it is so. Of two with the same
  /// pattern the later counts.
  void add(const std::string& pattern, const AddedToken& token);

  /// Stretches that cover the text (a token may reach back over the white space that the one before it took).
  [[nodiscard]] std::vector<AddedSpan> find(std::string_view text, bool with_special) const;

 private:
  struct Node {
    std::map<unsigned char, std::size_t> next;
    std::int32_t token = -1;
  };
  /// The longest token that begins at `at`: its end, and its index or -1.
  [[nodiscard]] std::pair<std::size_t, std::int32_t> longest(std::string_view text, std::size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::vector<bool> first_bytes_ = std::vector<bool>(256);
};

}  // namespace kvcal::formats
