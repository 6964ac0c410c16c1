#include "calib/text/passkey.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "base/error.h"

namespace kvcal::calib {
namespace {

/// Each byte is a token, but a digit joins the space before it.
class ByteTokenizer final : public formats::Tokenizer {
 public:
  static constexpr std::int32_t kBos = 1, kJoined = 1000;
  ByteTokenizer() {
    traits_.bos_id = kBos;
    traits_.adds_bos = true;
  }
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 const formats::EncodeOptions& /*options*/) const override {
    std::vector<std::int32_t> ids;
    for (const char c : text) {
      const bool joins = c >= '0' && c <= '9' && !ids.empty() && ids.back() == ' ';
      if (joins) ids.pop_back();
      ids.push_back(c + (joins ? kJoined : 0));
    }
    return ids;
  }
  [[nodiscard]] std::int32_t vocab_size() const override { return 2000; }

  static std::string decode(std::span<const std::int32_t> ids) {
    std::string text;
    for (const std::int32_t id : ids) {
      if (id >= kJoined) text += ' ';
      if (id != kBos) text += static_cast<char>(id % kJoined);
    }
    return text;
  }
};

TEST(Passkey, PromptsEndInTheNumberThatTheyHide) {
  const ByteTokenizer tokenizer;
  const std::vector<std::int64_t> lengths = {500, 3000};
  const PasskeyPrompts prompts = passkey_prompts(lengths, BosPlace::automatic, tokenizer);
  ASSERT_EQ(prompts.windows.samples, 2 * kPasskeyPlaces);
  std::vector<std::string> keys;
  for (std::int64_t w = 0; w < prompts.windows.samples; ++w) {
    const auto ids = prompts.windows.sample(w);
    const auto length = static_cast<std::size_t>(lengths[static_cast<std::size_t>(w / kPasskeyPlaces)]);
    EXPECT_LE(ids.size(), length);
    EXPECT_GT(ids.size() + 60, length);  // no sentence is longer
    EXPECT_EQ(ids.front(), ByteTokenizer::kBos);
    const std::string key =
        ByteTokenizer::decode(ids.subspan(static_cast<std::size_t>(prompts.first_scored[w]) + 1));
    ASSERT_EQ(key.size(), 6U) << key;
    const std::string text = ByteTokenizer::decode(ids.first(ids.size() - 5));
    const std::size_t place = text.find("number is" + key + ".");
    ASSERT_NE(place, std::string::npos) << text;
    const double depth = static_cast<double>(place) / static_cast<double>(length);
    const auto rank = static_cast<double>(w % kPasskeyPlaces) / (kPasskeyPlaces - 1);
    if (length > 1000) {
      EXPECT_NEAR(depth, 0.05 + 0.88 * rank, 0.05) << w;
    }
    keys.push_back(key);
  }
  std::ranges::sort(keys);
  EXPECT_EQ(std::ranges::adjacent_find(keys), keys.end());
}

TEST(Passkey, WithoutBosAndTooShort) {
  const ByteTokenizer tokenizer;
  const PasskeyPrompts prompts = passkey_prompts({800}, BosPlace::none, tokenizer);
  EXPECT_NE(prompts.windows.sample(0).front(), ByteTokenizer::kBos);
  try {
    (void)passkey_prompts({50}, BosPlace::none, tokenizer);
    FAIL();
  } catch (const base::WrongUsage& error) {
    EXPECT_NE(std::string(error.what()).find("--passkey 50"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace kvcal::calib
