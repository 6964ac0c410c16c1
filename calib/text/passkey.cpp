#include "calib/text/passkey.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/error.h"
#include "calib/text/text_reader.h"

namespace kvcal::calib {
namespace {

using Tokens = std::vector<std::int32_t>;

constexpr std::string_view kOpening =
    "Somewhere in the following text a secret number is given. Read on, and keep it in mind; you will be "
    "asked "
    "for it at the end.\n\n";
constexpr std::array<std::string_view, 8> kFiller = {
    "The river runs past the mill and on to the sea. ",
    "On market days the square is full of people. ",
    "In winter the hills are white and the roads are quiet. ",
    "A baker opens his shop before the sun is up. ",
    "The old bridge was built of stone from the valley. ",
    "Children play by the well until it is dark. ",
    "In the evening the lamps are lit along the street. ",
    "The wind turns, and it begins to rain. "};
constexpr std::string_view kQuestion = "\n\nWhat was the secret number? The secret number is";

std::string statement(const std::string& key) {
  return base::concat("The secret number is ", key, ". Remember: ", key, " is the secret number. ");
}

// Five digits that look like no series; every prompt has another.
std::string key_of(std::int64_t prompt) {
  return std::to_string(10000 + (7919 * (prompt + 1) * (prompt + 11) + 4241) % 90000);
}

/// A prompt with its answer, and where the answer begins.
struct Prompt {
  Tokens tokens;
  std::size_t answer = 0;
};

class PromptMaker {
 public:
  PromptMaker(BosPlace bos, const formats::Tokenizer& tokenizer)
      : tokenizer_(tokenizer), bos_(resolve_bos(bos, tokenizer)) {}

  // The longest of at most `length` tokens.
  [[nodiscard]] Prompt longest(std::int64_t length, std::int64_t place, std::int64_t number) const {
    const auto fits = [&](std::int64_t sentences) {
      return static_cast<std::int64_t>(make(sentences, place, number).tokens.size()) <= length;
    };
    if (!fits(0)) {
      throw base::WrongUsage(base::concat("--passkey ", length, " has no room for the question, which takes ",
                                          make(0, place, number).tokens.size(), " tokens"));
    }
    // Sentences of one length would be this many; then steps that grow until they are too many.
    constexpr std::int64_t kFew = 64;
    const auto tokens = [&](std::int64_t sentences) {
      return static_cast<std::int64_t>(make(sentences, place, number).tokens.size());
    };
    std::int64_t low =
        (length - tokens(0)) * kFew / std::max<std::int64_t>(1, tokens(kFew) - tokens(0)) * 9 / 10;
    if (!fits(low)) low = 0;
    std::int64_t step = 1, high = low + 1;
    while (fits(high)) low = high, high += step *= 2;
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (fits(middle) ? low : high) = middle;
    }
    return make(low, place, number);
  }

 private:
  [[nodiscard]] Prompt make(std::int64_t sentences, std::int64_t place, std::int64_t number) const {
    const std::string key = key_of(number);
    const std::int64_t before = (sentences * place + (kPasskeyPlaces - 1) / 2) / (kPasskeyPlaces - 1);
    std::string text(kOpening);
    for (std::int64_t i = 0; i < sentences; ++i) {
      if (i == before) text += statement(key);
      text += kFiller[static_cast<std::size_t>(i + number) % kFiller.size()];
    }
    if (before >= sentences) text += statement(key);
    text += kQuestion;
    const Tokens question = encode(text);
    Prompt prompt{encode(text + " " + key), 0};
    // A tokenizer may join the answer's first character to what stands before it.
    prompt.answer =
        static_cast<std::size_t>(std::ranges::mismatch(question, prompt.tokens).in2 - prompt.tokens.begin());
    return prompt;
  }

  [[nodiscard]] Tokens encode(const std::string& text) const {
    Tokens tokens = tokenizer_.encode(text, {});
    if (bos_ != BosPlace::none) tokens.insert(tokens.begin(), *tokenizer_.bos_id());
    return tokens;
  }

  const formats::Tokenizer& tokenizer_;
  BosPlace bos_;
};

}  // namespace

PasskeyPrompts passkey_prompts(const std::vector<std::int64_t>& lengths, BosPlace bos,
                               const formats::Tokenizer& tokenizer) {
  const PromptMaker maker(bos, tokenizer);
  std::vector<Prompt> prompts;
  for (const std::int64_t length : lengths) {
    for (std::int64_t place = 0; place < kPasskeyPlaces; ++place)
      prompts.push_back(maker.longest(length, place, static_cast<std::int64_t>(prompts.size())));
  }
  PasskeyPrompts result;
  TokenWindows& windows = result.windows;
  windows.samples = static_cast<std::int64_t>(prompts.size());
  for (const Prompt& prompt : prompts)
    windows.seqlen = std::max(windows.seqlen, static_cast<std::int64_t>(prompt.tokens.size()));
  for (const Prompt& prompt : prompts) {
    windows.ids.insert(windows.ids.end(), prompt.tokens.begin(), prompt.tokens.end());
    windows.ids.resize(windows.ids.size() + static_cast<std::size_t>(windows.seqlen) - prompt.tokens.size(),
                       -1);
    result.first_scored.push_back(static_cast<std::int64_t>(prompt.answer) - 1);
  }
  return result;
}

}  // namespace kvcal::calib
