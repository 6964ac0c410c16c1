// tokenizer.json, and a text of all that is awkward, encoded with it.
#include "formats/tokenizer/tokenizer.h"

#include <string>

#include "fuzz/input_file.h"
#include "fuzz/target.h"

namespace kvcal::fuzz {
namespace {

/// Runs of spaces and letters, all kinds of line ends, combining marks, Hangul, emoji, a zero byte, the last code point, special tokens
/// of several models, what the patterns of GPT-2 and Llama 3 tell apart.
std::string awkward_text() {
  std::string text =
      "Hello, we'LL don't  IT'S \t\r\n\n\r end 1234567 \xc2\xbd x\xcc\x81\xcc\xa3 \xed\x95\x9c\xea\xb8\x80 "
      "\xe1\x84\x92\xe1\x85\xa1 "
      "\xef\xac\x81 \xc3\x9f \xe1\xba\x9e \xce\xa3\xcf\x82 \xc4\xb0 "
      "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb \xe2\x80\xa8\xc2\xa0\xe3\x80\x80 "
      "\xf4\x8f\xbf\xbf \xe2\x96\x81\xe2\x96\x81 <s></s><|endoftext|><|begin_of_text|> <0x41> \x7f";
  text += '\0';
  text.append(40, 'a').append("$").append(64, ' ').append(200, '-').append("ababababab");
  return text;
}

}  // namespace

void read_input(std::span<const std::byte> bytes) {
  static InputFolder folder;
  static const std::string text = awkward_text();
  folder.write("tokenizer.json", bytes);
  const auto tokenizer = formats::load_tokenizer(folder.path());
  const std::int32_t size = tokenizer->vocab_size();
  for (const bool parse_special : {true, false}) {
    for (const std::int32_t id : tokenizer->encode(text, {.parse_special = parse_special}))
      if (id < 0 || id >= size) throw base::Error("an id outside the vocabulary: " + std::to_string(id));
  }
}

}  // namespace kvcal::fuzz
