#include "calib/text/validation_windows.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <initializer_list>
#include <string>

#include "base/error.h"
#include "base/sha256.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;
using Windows = std::vector<std::vector<std::int32_t>>;

constexpr std::int32_t kBos = 1;

/// Counts: byte i of a text of 'a' is the token 100 + i, of 'b' 200 + i (its last byte tells). '^' is the BOS,
/// where special tokens are parsed.
class CountingTokenizer final : public formats::Tokenizer {
 public:
  explicit CountingTokenizer(std::optional<std::int32_t> bos = kBos, bool adds_bos = true) {
    traits_.bos_id = bos;
    traits_.adds_bos = adds_bos;
    traits_.has_chat_template = true;
    traits_.special_ids = {kBos};
  }
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 const formats::EncodeOptions& options) const override {
    std::vector<std::int32_t> ids;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const bool special = text[i] == '^' && options.parse_special;
      ids.push_back(special ? kBos : 100 * (text.back() - 'a' + 1) + static_cast<std::int32_t>(i));
    }
    return ids;
  }
  [[nodiscard]] std::int32_t vocab_size() const override { return 100000; }
};

Windows rows(const ScoredWindows& scored) {
  Windows result;
  for (std::int64_t i = 0; i < scored.windows.samples; ++i) {
    const auto row = scored.windows.sample(i);
    result.emplace_back(row.begin(), row.end());
  }
  EXPECT_EQ(scored.windows.ids.size(),
            static_cast<std::size_t>(scored.windows.samples * scored.windows.seqlen));
  return result;
}

/// The first token of each window.
std::vector<std::int32_t> starts(const ScoredWindows& scored) {
  std::vector<std::int32_t> result;
  for (const auto& row : rows(scored)) result.push_back(row.front());
  return result;
}

template <typename Exception, typename Function>
std::string error_of(const Function& function) {
  try {
    (void)function();
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

class ValidationWindows : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("kvcal_validation_windows_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return folder_ / name;
  }
  /// `tokens` times `fill`, in a file of that name.
  fs::path counted(char fill, std::size_t tokens) {
    return write(std::string(1, fill) + ".txt", std::string(tokens, fill));
  }
  static ValidationText plain(std::vector<fs::path> files, Protocol protocol, std::int64_t seqlen) {
    ValidationText text;
    text.files = std::move(files);
    text.protocol = protocol;
    text.seqlen = seqlen;
    return text;
  }
  ScoredWindows cut(const ValidationText& text, const formats::Tokenizer& tokenizer = CountingTokenizer()) {
    return validation_windows(text, tokenizer, progress_);
  }
  ScoredWindows cut(ValidationText text, BosPlace bos) {
    text.bos = bos;
    return cut(text);
  }

  fs::path folder_;
  base::Progress progress_;
};

TEST(Protocols, ANameIsReadAsTheValueThatPrintsIt) {
  for (const auto& choice : kProtocols) {
    EXPECT_EQ(base::parse_choice("--protocol", choice.name, kProtocols), choice.value);
  }
  EXPECT_STREQ(base::choice_name(Protocol::llama_cpp, kProtocols), "llama.cpp");
  EXPECT_EQ(error_of<base::WrongUsage>([] { return base::parse_choice("--protocol", "gptq", kProtocols); }),
            "--protocol is 'gptq': it may be kvcal, kvquant or llama.cpp");
}

TEST(FirstScored, IsTheFirstPositionOrTheMiddle) {
  EXPECT_EQ(first_scored(Protocol::kvcal, 512), 0);
  EXPECT_EQ(first_scored(Protocol::kvquant, 512), 0);
  EXPECT_EQ(first_scored(Protocol::llama_cpp, 512), 256);
  EXPECT_EQ(first_scored(Protocol::llama_cpp, 5), 2);
}

TEST(FirstScored, RefusesWindowsThatLeaveNothingToScore) {
  EXPECT_EQ(first_scored(Protocol::kvcal, 2), 0);
  EXPECT_EQ(first_scored(Protocol::llama_cpp, 4), 2);
  EXPECT_THROW((void)first_scored(Protocol::kvcal, 1), base::WrongUsage);
  EXPECT_THROW((void)first_scored(Protocol::kvquant, -5), base::WrongUsage);
  EXPECT_EQ(error_of<base::WrongUsage>([] { return first_scored(Protocol::llama_cpp, 3); }),
            "--seqlen 3 leaves nothing to score: --protocol llama.cpp needs at least 4");
}

TEST_F(ValidationWindows, KvcalCutsAsCalibrationDoes) {
  const ValidationText text = plain({counted('a', 7)}, Protocol::kvcal, 3);
  const ScoredWindows scored = cut(text);
  EXPECT_EQ(rows(scored), (Windows{{1, 100, 101}, {1, 102, 103}, {1, 104, 105}}));
  EXPECT_EQ(scored.windows.bos, "each");
  EXPECT_EQ(scored.first_scored, 0);
  const ScoredWindows without = cut(text, CountingTokenizer(kBos, false));
  EXPECT_EQ(rows(without), (Windows{{100, 101, 102}, {103, 104, 105}}));
  EXPECT_EQ(without.windows.bos, "none");
}

TEST_F(ValidationWindows, KvquantShiftsAllWindowsByTheOneBos) {
  const ValidationText text = plain({counted('a', 8)}, Protocol::kvquant, 3);
  const ScoredWindows scored = cut(text);
  EXPECT_EQ(rows(scored), (Windows{{1, 100, 101}, {102, 103, 104}, {105, 106, 107}}));
  EXPECT_EQ(scored.windows.bos, "first");
  EXPECT_EQ(scored.first_scored, 0);
  // Whether the tokenizer itself would add it does not matter.
  EXPECT_EQ(rows(cut(text, CountingTokenizer(kBos, false))), rows(scored));
}

TEST_F(ValidationWindows, LlamaCppReplacesTheFirstTokenOfEachChunk) {
  const ValidationText text = plain({counted('a', 11)}, Protocol::llama_cpp, 4);
  const ScoredWindows scored = cut(text);
  // The stream is the BOS and 100 to 110; 103 and 107 are the tokens that later BOS replace.
  EXPECT_EQ(rows(scored), (Windows{{1, 100, 101, 102}, {1, 104, 105, 106}, {1, 108, 109, 110}}));
  EXPECT_EQ(scored.windows.bos, "each");
  EXPECT_EQ(scored.first_scored, 2);
  // llama.cpp asks whether the tokenizer adds a BOS, not whether it has one.
  const ScoredWindows without = cut(text, CountingTokenizer(kBos, false));
  EXPECT_EQ(rows(without), (Windows{{100, 101, 102, 103}, {104, 105, 106, 107}}));
  EXPECT_EQ(without.windows.bos, "none");
  EXPECT_EQ(without.first_scored, 2);
}

TEST_F(ValidationWindows, AnExplicitBosOverridesTheProtocol) {
  const ValidationText kvcal = plain({counted('a', 8)}, Protocol::kvcal, 4);
  EXPECT_EQ(rows(cut(kvcal, BosPlace::first)), (Windows{{1, 100, 101, 102}, {103, 104, 105, 106}}));
  EXPECT_EQ(rows(cut(kvcal, BosPlace::none)), (Windows{{100, 101, 102, 103}, {104, 105, 106, 107}}));
  ValidationText kvquant = kvcal;
  kvquant.protocol = Protocol::kvquant;
  EXPECT_EQ(rows(cut(kvquant, BosPlace::each)), (Windows{{1, 100, 101, 102}, {1, 103, 104, 105}}));
  EXPECT_EQ(rows(cut(kvquant, BosPlace::none)), (Windows{{100, 101, 102, 103}, {104, 105, 106, 107}}));
  ValidationText llama = kvcal;
  llama.protocol = Protocol::llama_cpp;
  EXPECT_EQ(rows(cut(llama, BosPlace::each)), (Windows{{1, 100, 101, 102}, {1, 104, 105, 106}}));
  EXPECT_EQ(rows(cut(llama, BosPlace::first)), (Windows{{1, 100, 101, 102}, {103, 104, 105, 106}}));
  EXPECT_EQ(rows(cut(llama, BosPlace::none)), (Windows{{100, 101, 102, 103}, {104, 105, 106, 107}}));
  EXPECT_EQ(cut(llama, BosPlace::first).windows.bos, "first");
  EXPECT_EQ(cut(kvquant, BosPlace::none).windows.bos, "none");
  EXPECT_EQ(cut(llama, BosPlace::none).first_scored, 2);
}

TEST_F(ValidationWindows, ATextWithItsOwnBosGetsNoSecond) {
  const fs::path file = write("own.txt", "^aaaaaaa");
  EXPECT_EQ(rows(cut(plain({file}, Protocol::kvquant, 4))),
            (Windows{{1, 101, 102, 103}, {104, 105, 106, 107}}));
  EXPECT_EQ(rows(cut(plain({file}, Protocol::llama_cpp, 4))),
            (Windows{{1, 101, 102, 103}, {1, 105, 106, 107}}));
  ValidationText as_text = plain({file}, Protocol::kvquant, 4);
  as_text.parse_special = false;
  EXPECT_EQ(rows(cut(as_text)), (Windows{{1, 100, 101, 102}, {103, 104, 105, 106}}));
}

TEST_F(ValidationWindows, ATokenizerWithoutBosAddsNoneAndRefusesToBeAskedForOne) {
  const CountingTokenizer tokenizer(std::nullopt);
  for (const Protocol protocol : {Protocol::kvcal, Protocol::kvquant, Protocol::llama_cpp}) {
    ValidationText text = plain({counted('a', 5)}, protocol, 4);
    const ScoredWindows scored = cut(text, tokenizer);
    EXPECT_EQ(rows(scored), (Windows{{100, 101, 102, 103}}));
    EXPECT_EQ(scored.windows.bos, "none");
    text.bos = BosPlace::each;
    EXPECT_EQ(error_of<base::WrongUsage>([&] { return cut(text, tokenizer); }),
              "--bos each: this model's tokenizer names no BOS token; use --bos none");
    text.bos = BosPlace::first;
    EXPECT_THROW((void)cut(text, tokenizer), base::WrongUsage);
  }
}

TEST_F(ValidationWindows, AnExplicitNumberIsSharedAndTakenFromEachStart) {
  ValidationText text = plain({counted('a', 30), counted('b', 30)}, Protocol::kvquant, 4);
  text.windows = 5;
  const ScoredWindows scored = cut(text);
  // Each text is a stream of its own: a BOS begins both.
  EXPECT_EQ(rows(scored), (Windows{{1, 100, 101, 102},
                                   {103, 104, 105, 106},
                                   {107, 108, 109, 110},
                                   {1, 200, 201, 202},
                                   {203, 204, 205, 206}}));
  ASSERT_EQ(scored.windows.texts.size(), 2U);
  EXPECT_EQ(scored.windows.texts[0].name, "a.txt");
  EXPECT_EQ(scored.windows.texts[1].name, "b.txt");
  const std::string content(30, 'b');
  EXPECT_EQ(scored.windows.texts[1].sha256, base::sha256_hex(std::as_bytes(std::span(content))));
}

TEST_F(ValidationWindows, ATextTooShortForItsShareSaysWhatItGaveAndWhatToDo) {
  const fs::path longer = counted('a', 40);
  const fs::path shorter = counted('b', 9);
  ValidationText text = plain({longer, shorter}, Protocol::kvquant, 4);
  text.windows = 6;
  EXPECT_EQ(error_of<base::InvalidInput>([&] { return cut(text); }),
            shorter.string() +
                ": too short: it gave 9 tokens, 2 windows of 4, and 3 are needed; "
                "give more text, or ask for fewer with --windows 4 or --windows all");
  text.windows = 4;  // as the message says
  EXPECT_EQ(starts(cut(text)), (std::vector<std::int32_t>{1, 103, 1, 203}));
}

TEST_F(ValidationWindows, WithoutANumberThereAreUpToSixteen) {
  EXPECT_EQ(cut(plain({counted('a', 20)}, Protocol::kvquant, 4)).windows.samples, 5);
  EXPECT_EQ(cut(plain({counted('a', 90)}, Protocol::kvquant, 4)).windows.samples, 16);
  // Eight each, of which the short text has two; the long one does not make up for it.
  const ScoredWindows scored = cut(plain({counted('a', 9), counted('b', 90)}, Protocol::kvquant, 4));
  EXPECT_EQ(starts(scored), (std::vector<std::int32_t>{1, 103, 1, 203, 207, 211, 215, 219, 223, 227}));
}

TEST_F(ValidationWindows, AllWindowsAreAllOfEachText) {
  ValidationText text = plain({counted('a', 9), counted('b', 90)}, Protocol::kvquant, 4);
  text.all_windows = true;
  const ScoredWindows scored = cut(text);
  EXPECT_EQ(scored.windows.samples, 2 + 22);
  EXPECT_EQ(scored.windows.sample(23).front(), 200 + 4 * 21 - 1);
}

TEST_F(ValidationWindows, ATextWithoutOneWholeWindowIsRefusedHoweverManyAreAsked) {
  const fs::path file = counted('b', 2);
  ValidationText text = plain({counted('a', 90), file}, Protocol::kvquant, 4);
  const std::string expected = file.string() +
                               ": too short: it gave 2 tokens, not one whole window of 4; "
                               "give more text, or lower --seqlen";
  EXPECT_EQ(error_of<base::InvalidInput>([&] { return cut(text); }), expected);
  text.windows = 2;
  EXPECT_EQ(error_of<base::InvalidInput>([&] { return cut(text); }), expected);
  text.all_windows = true;
  EXPECT_EQ(error_of<base::InvalidInput>([&] { return cut(text); }), expected);
  (void)counted('b', 3);  // with the BOS, one window
  EXPECT_EQ(cut(text).windows.sample(cut(text).windows.samples - 1).size(), 4U);
}

TEST_F(ValidationWindows, AnEmptyTextAndNoTextAreRefused) {
  const fs::path file = write("empty.txt", "");
  EXPECT_EQ(error_of<base::InvalidInput>([&] { return cut(plain({file}, Protocol::kvcal, 4)); }),
            file.string() + ": the text is empty");
  EXPECT_THROW((void)cut(plain({}, Protocol::kvcal, 4)), base::WrongUsage);
}

TEST_F(ValidationWindows, FewerWindowsThanTextsAreRefused) {
  ValidationText text = plain({counted('a', 90), counted('b', 90)}, Protocol::kvcal, 4);
  text.windows = 1;
  EXPECT_EQ(error_of<base::WrongUsage>([&] { return cut(text); }),
            "--windows 1 is fewer than the 2 texts; each gives an equal share, at least one");
  text.windows = std::nullopt;
  text.files.assign(17, counted('a', 90));
  EXPECT_EQ(error_of<base::WrongUsage>([&] { return cut(text); }),
            "--windows 16 (the default) is fewer than the 17 texts; each gives an equal share, at least one");
  text.windows = 17;
  EXPECT_EQ(cut(text).windows.samples, 17);
}

TEST_F(ValidationWindows, LlamaCppNeedsFourTokens) {
  EXPECT_THROW((void)cut(plain({counted('a', 90)}, Protocol::llama_cpp, 3)), base::WrongUsage);
  EXPECT_EQ(cut(plain({counted('a', 90)}, Protocol::llama_cpp, 4)).first_scored, 2);
}

TEST_F(ValidationWindows, WhatIsOddAboutTheTextsIsRecorded) {
  const fs::path broken = write("broken.txt",
                                "\xff"
                                "aaaaaaaa");
  const ScoredWindows odd = cut(plain({broken}, Protocol::kvcal, 4));
  ASSERT_EQ(odd.windows.warnings.size(), 1U);
  EXPECT_NE(odd.windows.warnings[0].find("broken.txt: not valid UTF-8 in 1 places"), std::string::npos)
      << odd.windows.warnings[0];
  EXPECT_TRUE(odd.windows.chat_template_without_special);
  const ScoredWindows clean = cut(plain({write("chat.txt", "aa^aaaaa")}, Protocol::kvcal, 4));
  EXPECT_TRUE(clean.windows.warnings.empty());
  EXPECT_FALSE(clean.windows.chat_template_without_special);
}

}  // namespace
}  // namespace kvcal::calib
