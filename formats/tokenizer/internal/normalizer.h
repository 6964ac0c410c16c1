// formats/tokenizer/internal/normalizer.h: the normalizers of tokenizer.json:
// what is done to a text before it is cut.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer/internal/tokenizer_regex.h"
#include "formats/tokenizer/internal/unicode.h"

namespace kvcal::formats {

/// A text on its way through the normalizers. at_origin: its first character stems from the first of the
/// whole input, which is what the pre-tokenizer Metaspace asks for under prepend_scheme "first".
struct NormalizedText {
  std::string text;
  bool at_origin = true;
  std::size_t most_bytes = 0;  ///< more is refused; set by apply()
};

/// Steps, one after the other; none leaves a text as it is. Texts are valid UTF-8 before and after.
class Normalizer {
 public:
  void add_form(NormalForm form);
  void add_lowercase();
  void add_strip_accents();
  void add_strip(bool left, bool right);
  void add_prepend(std::string text);  ///< not before an empty text
  /// Every match by content, in which $1 means nothing.
  void add_replace(TokenizerRegex pattern, std::string content);
  void add_byte_level();  ///< each byte as its printable character (see pretokenizer.h)

  void apply(NormalizedText& text) const;
  [[nodiscard]] bool empty() const { return steps_.empty(); }

 private:
  std::vector<std::function<void(NormalizedText&)>> steps_;
};

}  // namespace kvcal::formats
