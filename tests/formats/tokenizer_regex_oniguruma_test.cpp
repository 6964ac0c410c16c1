// The regular expressions of tokenizer.json: Oniguruma with the reference's Unicode, and limits that a hostile
// file can't lift. Agreement on every character is tokenizer_reference_test.py's.
#include "formats/tokenizer/internal/tokenizer_regex.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"

namespace kvcal::formats {
namespace {

using Pieces = std::vector<std::string>;

/// What the pattern matched, without empty matches.
Pieces matches(const std::string& pattern, const std::string& text) {
  Pieces pieces;
  for (const PatternSpan& span : TokenizerRegex::from_oniguruma(pattern).find_spans(text)) {
    if (span.matched && span.begin != span.end)
      pieces.push_back(text.substr(span.begin, span.end - span.begin));
  }
  return pieces;
}

std::string repeated(const std::string& part, int times) {
  std::string text;
  for (int i = 0; i < times; ++i) text += part;
  return text;
}

void expect_refused(const std::string& pattern, const std::string& text, const std::string& reason) {
  try {
    (void)TokenizerRegex::from_oniguruma(pattern).find_spans(text);
    FAIL() << pattern.substr(0, 40) << " was taken, though: " << reason;
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(pattern.substr(0, 40)), std::string::npos) << error.what();
    EXPECT_LT(std::string(error.what()).size(), 600U);
  }
}

TEST(TokenizerRegex, FoldsSeveralCharactersIntoOne) {
  EXPECT_EQ(matches("(?i)ss", "stra\u00dfe"), Pieces{"\u00df"});
  EXPECT_EQ(matches("(?i)\u00df", "STRASSE"), Pieces{"SS"});
}

TEST(TokenizerRegex, KnowsUnicode16) {
  EXPECT_EQ(matches(R"(\p{L}+)", "-\U00031350-"), Pieces{"\U00031350"});  // CJK extension H, Unicode 15
  EXPECT_EQ(matches(R"(\w+)", "-\U00010D50-"), Pieces{"\U00010D50"});     // Garay, Unicode 16
  EXPECT_EQ(matches(R"(\p{Mc})", "\U0001171E"), Pieces{"\U0001171E"});    // was Mn
  EXPECT_EQ(matches("(?i)\U00010D50", "\U00010D70"), Pieces{"\U00010D70"});
  EXPECT_EQ(matches("(?i)[\U00010D70]", "\U00010D50"), Pieces{"\U00010D50"});
  EXPECT_EQ(matches("[[:punct:]]", "$\u20ac\U0001F600a"), (Pieces{"$", "\u20ac", "\U0001F600"}));
  EXPECT_EQ(matches(R"(\p{Punct})", "$\u20ac!"), Pieces{"!"});
}

TEST(TokenizerRegex, MendsTheLibrary) {
  EXPECT_EQ(matches(R"(\R+)", "a\n\n\r\nb\r\n\n"), (Pieces{"\n\n\r\n", "\r\n\n"}));
  EXPECT_EQ(matches(R"(\p{Wo_rd}+)", "z\u00b2-"), Pieces{"z\u00b2"});
  EXPECT_EQ(matches(R"([\p{word}]+)", "z\u00b2-"), Pieces{"z"});
  expect_refused(R"([\R])", "", "stands in a class");
}

TEST(TokenizerRegex, MatchesFarFromWhereTheSearchBegins) {
  // Beyond the first search's retries, places are tried one by one.
  EXPECT_EQ(matches("(?:ab)+c", repeated("ab", 500) + repeated("\u4e2dabx", 5000) + "abc"), Pieces{"abc"});
  EXPECT_EQ(matches(R"(\Ga)", "aab" + repeated("a", 5000)), (Pieces{"a", "a"}));
}

TEST(TokenizerRegex, LongRunsMatch) {
  EXPECT_EQ(matches("(?:a|b)*", repeated("ab", 500000)).size(), 1U);
  EXPECT_EQ(matches(R"(\s+(?!\S)|\s+)", repeated(" ", 1000000) + "x").size(), 2U);
}

TEST(TokenizerRegex, HostilePatternsAreCheapOrRefused) {
  EXPECT_EQ(matches(repeated(R"(\p{Greek})", 300), "a"), Pieces{});
  EXPECT_EQ(matches(repeated(R"([^\W\d])", 500), "a"), Pieces{});
  EXPECT_EQ(matches("(a{1000}){1000}", repeated("a", 1000000)).size(), 1U);
  expect_refused("a" + repeated("*", 200000), "", "16384 bytes");
  expect_refused("a" + repeated("+?*", 1000), "", "parse depth limit over");
  expect_refused(repeated("(", 8000) + "a" + repeated(")", 8000), "", "parse depth limit over");
  expect_refused("(a|a|aa)+$", repeated("a", 40) + "b", "retry-limit-in-match over");
  expect_refused(R"((?<n>x)\g<n>)", "", "the group call at byte 7");
  expect_refused("a(*FAIL)", "", "target of repeat operator");
  expect_refused(R"(\p{Diacritic})", "", "invalid character property name");
  expect_refused("(a", "", "end pattern with unmatched parenthesis");
}

TEST(TokenizerRegex, LiteralsHaveNoSyntax) {
  const auto spans = TokenizerRegex::from_literal("a.c\\").find_spans("abca.c\\");
  ASSERT_EQ(spans.size(), 2U);
  EXPECT_TRUE(spans[1].matched);
  EXPECT_EQ(spans[1].begin, 3U);
}

}  // namespace
}  // namespace kvcal::formats
