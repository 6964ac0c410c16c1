#include "calib/text/text_sampler.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"
#include "formats/npy.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;
using Windows = std::vector<std::vector<std::int32_t>>;

const std::vector<std::int32_t> kTokens = {10, 11, 12, 13, 14, 15, 16};

TEST(CutWindows, EachStartsWithABosInsideItsLength) {
  EXPECT_EQ(cut_windows(kTokens, 3, BosPlace::each, 1, 0), (Windows{{1, 10, 11}, {1, 12, 13}, {1, 14, 15}}));
}

TEST(CutWindows, FirstIsAtTheStartOfTheTextOnly) {
  EXPECT_EQ(cut_windows(kTokens, 3, BosPlace::first, 1, 0), (Windows{{1, 10, 11}, {12, 13, 14}}));
}

TEST(CutWindows, NoneCutsTheTextAsItIs) {
  EXPECT_EQ(cut_windows(kTokens, 3, BosPlace::none, 1, 0), (Windows{{10, 11, 12}, {13, 14, 15}}));
  EXPECT_EQ(cut_windows(kTokens, 3, BosPlace::none, 1, 2), (Windows{{12, 13, 14}}));
}

TEST(CutWindows, NeverTwoBosInARow) {
  const std::vector<std::int32_t> tokens = {1, 10, 11, 12, 1, 13, 14};
  EXPECT_EQ(cut_windows(tokens, 3, BosPlace::each, 1, 0), (Windows{{1, 10, 11}, {1, 12, 1}, {1, 13, 14}}));
}

TEST(Choices, ANameIsReadAsTheValueThatPrintsIt) {
  for (const auto& choice : kBosPlaces) {
    EXPECT_EQ(base::parse_choice("--bos", choice.name, kBosPlaces), choice.value);
    EXPECT_STREQ(base::choice_name(choice.value, kBosPlaces), choice.name);
  }
}

TEST(Choices, AnotherNameIsRefusedWithAllThatAreKnown) {
  for (const char* text : {"always", "", "EACH", "each ", "eac"}) {
    try {
      (void)base::parse_choice("--bos", text, kBosPlaces);
      FAIL() << text;
    } catch (const base::WrongUsage& error) {
      EXPECT_EQ(std::string(error.what()),
                base::concat("--bos is '", text, "': it may be auto, each, first or none"));
    }
  }
}

/// One token per byte; BOS is 256.
class ByteTokenizer final : public formats::Tokenizer {
 public:
  ByteTokenizer() {
    traits_.bos_id = 256;
    traits_.adds_bos = true;
  }
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 const formats::EncodeOptions&) const override {
    std::vector<std::int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  [[nodiscard]] std::int32_t vocab_size() const override { return 257; }
};

class SampleTexts : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("kvcal_sampler_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path text(const std::string& name, std::size_t bytes, char fill) {
    std::string content(bytes, fill);
    for (std::size_t i = 0; i < bytes; ++i)
      content[i] = static_cast<char>(fill + static_cast<char>(i / 9 % 10));
    std::ofstream(folder_ / name) << content;
    return folder_ / name;
  }
  fs::path folder_;
  base::Progress progress_;
};

TEST_F(SampleTexts, EachTextGivesAnEqualShareEvenlySpaced) {
  TextSampling sampling;
  sampling.files = {text("a.txt", 90, '0'), text("b.txt", 40, 'A')};
  sampling.samples = 5;
  sampling.seqlen = 10;
  const TokenWindows windows = sample_texts(sampling, ByteTokenizer(), progress_);
  EXPECT_EQ(windows.bos, "each");
  ASSERT_EQ(windows.samples, 5);
  // Ten windows of 9 bytes in a.txt, of which 0, 3 and 6 are taken; four in b.txt: 0 and 2.
  const std::vector<std::int32_t> expected = {'0', '3', '6', 'A', 'C'};
  for (std::int64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(windows.sample(i)[0], 256);
    EXPECT_EQ(windows.sample(i)[1], expected[static_cast<std::size_t>(i)]) << i;
  }
  EXPECT_EQ(windows.tokens(), 50);
}

TEST_F(SampleTexts, ATextTooShortSaysHowManyTokensItGave) {
  TextSampling sampling;
  sampling.files = {text("short.txt", 15, 'x')};
  sampling.samples = 4;
  sampling.seqlen = 10;
  try {
    (void)sample_texts(sampling, ByteTokenizer(), progress_);
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("15 tokens"), std::string::npos) << error.what();
  }
  std::ofstream(folder_ / "empty.txt").close();
  sampling.files = {folder_ / "empty.txt"};
  EXPECT_THROW((void)sample_texts(sampling, ByteTokenizer(), progress_), base::InvalidInput);
}

TEST_F(SampleTexts, ASeedShiftsTheStart) {
  TextSampling sampling;
  sampling.files = {text("a.txt", 500, '0')};
  sampling.samples = 2;
  sampling.seqlen = 100;
  const auto plain = sample_texts(sampling, ByteTokenizer(), progress_);
  sampling.seed = 5;
  const auto shifted = sample_texts(sampling, ByteTokenizer(), progress_);
  EXPECT_NE(plain.ids, shifted.ids);
  EXPECT_EQ(shifted.ids, sample_texts(sampling, ByteTokenizer(), progress_).ids);
}

TEST_F(SampleTexts, TokenArraysAreCheckedToTheLastId) {
  const fs::path file = folder_ / "tokens.npy";
  const std::vector<std::int64_t> shape = {2, 3};
  const auto write = [&](std::vector<std::int64_t> ids) {
    formats::write_npy(file, std::span<const std::int64_t>(ids), shape);
  };
  write({1, 2, 3, 4, 5, -1});
  const TokenWindows windows = load_tokens(file, 10);
  EXPECT_EQ(windows.sample(1).size(), 2U);
  EXPECT_EQ(windows.tokens(), 5);
  write({1, 2, 3, 4, -1, 5});
  EXPECT_THROW((void)load_tokens(file, 10), base::InvalidInput);
  write({1, 2, 3, 4, 10, 5});
  try {
    (void)load_tokens(file, 10);
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("[1, 1] is 10"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace kvcal::calib
