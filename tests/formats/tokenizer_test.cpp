// Tokenizers on files made here; agreement with the reference on real ones is tokenizer_reference_test.py's.
#include "formats/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"

namespace kvcal::formats {
namespace {

using Ids = std::vector<std::int32_t>;

class TokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              (std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) +
               std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
  }

  /// A file with the vocabulary <unk> a b ab and mark, ids 0 to 4, the merge "a b", and `more` members of the
  /// top object.
  void write_tokenizer(const std::string& more, const std::string& model = "") const {
    write("tokenizer.json", R"({"version":"1.0","model":{"type":"BPE","unk_token":"<unk>",)" + model +
                                R"("vocab":{"<unk>":0,"a":1,"b":2,"ab":3,"\u2581":4},"merges":["a b"]})" +
                                more + "}");
  }

  [[nodiscard]] Ids encode(const std::string& text, bool parse_special = true) const {
    return load_tokenizer(folder_)->encode(text, {.parse_special = parse_special});
  }

  void expect_refused(const std::string& reason) const {
    try {
      (void)load_tokenizer(folder_);
      FAIL() << "it was taken, though: " << reason;
    } catch (const base::InvalidInput& error) {
      EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
    }
  }

  std::filesystem::path folder_;
};

std::string added(const std::string& content, const std::string& flags) {
  return R"({"id":5,"content":")" + content +
         R"(","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true)" + flags +
         "}";
}

TEST_F(TokenizerTest, MergesAndUnknownCharacters) {
  write_tokenizer("");
  EXPECT_EQ(encode("abba"), (Ids{3, 2, 1}));
  EXPECT_EQ(encode("aqqb"), (Ids{1, 0, 0, 2}));
  EXPECT_EQ(encode(""), Ids{});
  write_tokenizer("", R"("fuse_unk":true,)");
  EXPECT_EQ(encode("aqqb"), (Ids{1, 0, 2}));
}

TEST_F(TokenizerTest, LongWordsTakeNoQuadraticTime) {
  write_tokenizer("");
  std::string text;
  for (int i = 0; i < 500000; ++i) text += "ab";
  EXPECT_EQ(encode(text), Ids(500000, 3));
}

TEST_F(TokenizerTest, SpecialTokens) {
  write_tokenizer(R"(,"added_tokens":[)" + added("<x>", "") + "]");
  EXPECT_EQ(encode("a<x>b"), (Ids{1, 5, 2}));
  EXPECT_EQ(encode("a<x>b", false), (Ids{1, 0, 0, 0, 2}));
  const auto tokenizer = load_tokenizer(folder_);
  EXPECT_EQ(tokenizer->vocab_size(), 6);
  EXPECT_EQ(tokenizer->special_ids(), Ids{5});
  EXPECT_FALSE(tokenizer->bos_id());
  EXPECT_FALSE(tokenizer->adds_bos());
}

TEST_F(TokenizerTest, MetaspaceMarksTheStartOnly) {
  write_tokenizer(
      R"(,"pre_tokenizer":{"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first","split":false},"added_tokens":[)" +
      added("<x>", "") + "]");
  EXPECT_EQ(encode("a<x>b"), (Ids{4, 1, 5, 2}));
  EXPECT_EQ(encode("<x>b"), (Ids{5, 2}));
}

TEST_F(TokenizerTest, BosFromPostProcessorThenConfig) {
  write_tokenizer(
      R"(,"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"a","type_id":0}},
      {"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"a":{"id":"a","ids":[1],"tokens":["a"]}}})");
  EXPECT_EQ(load_tokenizer(folder_)->bos_id(), 1);
  EXPECT_TRUE(load_tokenizer(folder_)->adds_bos());
  write_tokenizer("");
  write("tokenizer_config.json",
        R"({"bos_token":{"content":"b"},"add_bos_token":true,"chat_template":"{{ x }}"})");
  EXPECT_EQ(load_tokenizer(folder_)->bos_id(), 2);
  EXPECT_TRUE(load_tokenizer(folder_)->adds_bos());
  EXPECT_TRUE(load_tokenizer(folder_)->has_chat_template());
  write("tokenizer_config.json", R"({"bos_token":null})");
  write("config.json", R"({"bos_token_id":3})");
  EXPECT_EQ(load_tokenizer(folder_)->bos_id(), 3);
  EXPECT_FALSE(load_tokenizer(folder_)->adds_bos());
}

TEST_F(TokenizerTest, UnknownPartsAreRefusedByName) {
  expect_refused("neither tokenizer.json nor tokenizer.model");
  write_tokenizer(R"(,"normalizer":{"type":"Precompiled"})");
  expect_refused(
      "normalizer: the normalizer 'Precompiled' is not supported; tokenise elsewhere and give the ids with "
      "--tokens");
  write_tokenizer(R"(,"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"BertPreTokenizer"}]})");
  expect_refused("pre_tokenizer.pretokenizers[0]: the pre-tokenizer 'BertPreTokenizer'");
  write_tokenizer(R"(,"post_processor":{"type":"Foo"})");
  expect_refused("post-processor 'Foo'");
  write_tokenizer(
      R"(,"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a"},"behavior":"Isolated","invert":false})");
  expect_refused("end pattern with unmatched parenthesis");
  write_tokenizer("", R"("dropout":0.1,)");
  expect_refused("dropout");
  write("tokenizer.json", R"({"model":{"type":"WordPiece","vocab":{}}})");
  expect_refused("'WordPiece'");
}

TEST_F(TokenizerTest, DamagedFilesAreRefused) {
  const auto model = [&](const std::string& vocab, const std::string& merges) {
    write("tokenizer.json", R"({"model":{"type":"BPE","vocab":)" + vocab + R"(,"merges":)" + merges + "}}");
  };
  write("tokenizer.json", "{");
  expect_refused("not JSON");
  write("tokenizer.json", "[]");
  expect_refused("an object was expected");
  model("{}", "[]");
  expect_refused("the vocabulary is empty");
  model(R"({"a":-1})", "[]");
  expect_refused("negative or too large");
  model(R"({"a":"x"})", "[]");
  expect_refused("an id was expected");
  model(R"({"a":1,"b":1})", "[]");
  expect_refused("share the id 1");
  model(R"({"a":1})", R"(["a c"])");
  expect_refused("needs the token 'c'");
  model(R"({"a":1})", R"(["a"])");
  expect_refused("merges[0]");
  model(R"({"a":1})", R"([["a"]])");
  expect_refused("merges[0]");
  model(R"({"a":1})", "7");
  expect_refused("an array was expected");
  write_tokenizer(R"(,"added_tokens":[)" + added("<x>", "") + "," + added("<y>", "") + "]");
  expect_refused("share the id 5");
  std::filesystem::remove(folder_ / "tokenizer.json");
  write("tokenizer.model", "not a model");
  expect_refused("not a SentencePiece model");
  write("tokenizer.model", "");
  expect_refused("the file is empty");
}

TEST_F(TokenizerTest, TextThatIsNotUtf8IsRefused) {
  write_tokenizer("");
  EXPECT_THROW((void)encode("a\xff"), base::InvalidInput);
}

TEST(DecodeUtf8Lossy, ReplacesAsPythonDoes) {
  const auto decode = [](std::string_view text) {
    return decode_utf8_lossy(std::as_bytes(std::span(text.data(), text.size())));
  };
  EXPECT_EQ(decode("a\xf0\x9f\x98z").text, "a\uFFFDz");
  EXPECT_EQ(decode("\xed\xa0\x80").replaced, 3);
  EXPECT_EQ(decode("\xc0\xaf\xe2\x82").text, "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(decode("\xf0\x9f\x98\x80").replaced, 0);
}

}  // namespace
}  // namespace kvcal::formats
