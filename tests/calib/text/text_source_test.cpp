#include "calib/text/text_source.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <array>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "base/sha256.h"
#include "calib/text/foreign_format.h"
#include "calib/text/gzip.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

/// One gzip member.
std::string packed(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 9, Z_DEFAULT_STRATEGY), Z_OK);
  std::string input = text;
  std::string out(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

struct Read {
  SourceText source;
  std::vector<std::string> warnings;
};

Read read(const std::string& bytes, const std::string& field = kDefaultTextField) {
  base::Progress progress;
  Read result;
  result.source = text_of_bytes(bytes_of(bytes), "a.file", field, progress, result.warnings);
  return result;
}

std::string text_of(const std::string& bytes, const std::string& field = kDefaultTextField) {
  const Read result = read(bytes, field);
  EXPECT_TRUE(result.warnings.empty()) << result.warnings.front();
  return result.source.text;
}

template <typename Exception = base::InvalidInput, typename Function>
std::string error_of(const Function& function) {
  try {
    (void)function();
  } catch (const Exception& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    return text;
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

/// The refusal of these bytes names the file and all of `parts`.
void refused(const std::string& bytes, const std::vector<std::string>& parts,
             const std::string& field = kDefaultTextField) {
  const std::string error = error_of([&] { return read(bytes, field); });
  EXPECT_TRUE(error.starts_with("a.file: ")) << error;
  for (const std::string& part : parts)
    EXPECT_NE(error.find(part), std::string::npos) << error << "\n" << part;
}

const std::string kLines =
    "{\"id\": 1, \"text\": \"one\\n\"}\n\n{\"text\": \"zw\\u00f6lf\", \"id\": 2}\r\n  {\"text\": \"three\"}";
const std::string kJoined = "one\n\n\nzw\xC3\xB6lf\n\nthree";

TEST(TextSource, PlainTextStaysAsItIs) {
  for (const std::string& text : {"a"s, "\xEF\xBB\xBFwith a mark\r\n"s, "{not json}\n{\"a\": 1}"s,
                                  "[{ list }]"s, " \n"s, "PARTY, PAR1S and GGUF are words; PK and BZh too"s,
                                  "PAR1"s, "GGUF is a format"s, "{}extra\n"s, "[1, 2]"s}) {
    EXPECT_EQ(text_of(text), text);
    EXPECT_EQ(read(text).source.documents, 0);
  }
}

TEST(TextSource, BytesThatAreNotUtf8AreReplacedWithOneWarning) {
  const Read result = read("caf\xE9 na\xEFve");
  EXPECT_EQ(result.source.text, "caf\xEF\xBF\xBD na\xEF\xBF\xBDve");
  ASSERT_EQ(result.warnings.size(), 1U);
  EXPECT_NE(result.warnings[0].find("2 places"), std::string::npos);
}

TEST(TextSource, GzipIsWhatItHoldsAndItsHashIsOfTheBytesAsGiven) {
  const std::string text = "a line\n"s + std::string(3 << 20, 'x');
  EXPECT_EQ(text_of(packed(text)), text);
  EXPECT_EQ(read(packed(text)).source.info.sha256, base::sha256_hex(packed(text)));
  EXPECT_EQ(text_of(packed("one, ") + packed("") + packed("two")), "one, two");
  EXPECT_EQ(text_of(packed("padded") + std::string(512, '\0')), "padded");
  EXPECT_EQ(text_of(packed(kLines)), kJoined);
}

TEST(TextSource, DamagedGzipIsRefused) {
  const std::string text(100000, 'y');
  const std::string whole = packed(text + "end of it, and some that is not the same");
  for (const std::size_t size : {std::size_t{2}, std::size_t{12}, whole.size() / 2, whole.size() - 1})
    refused(whole.substr(0, size), {"ends too early", "gzip -t"});
  std::string wrong = whole;
  wrong[wrong.size() - 6] ^= 1;
  refused(wrong, {"damaged", "incorrect data check"});
  wrong = whole;
  wrong[wrong.size() - 2] ^= 1;
  refused(wrong, {"damaged", "incorrect length check"});
  refused(whole + "trailing",
          {"8 bytes that are not gzip follow", "at byte " + std::to_string(whole.size())});
  refused(packed(packed("twice")), {"gzip inside gzip"});
  refused(packed(""), {"the text is empty"});
}

TEST(TextSource, AGzipBombEndsInAnErrorWithRatioAndLimit) {
  refused(packed(std::string(std::size_t{70} << 20, 'z')),
          {"MiB so far", " times its size", "8192 MiB", "500"});
  base::Progress progress;
  const std::string small = packed(std::string(3 << 20, 'z'));
  const auto inflate = [&](const InflateLimits& limits) {
    return inflate_gzip(bytes_of(small), "a.gz", progress, limits);
  };
  EXPECT_EQ(inflate({.bytes = 3 << 20}).size(), std::size_t{3} << 20);
  EXPECT_NE(error_of([&] { return inflate({.bytes = (3 << 20) - 1}); }).find("more than 3 MiB"),
            std::string::npos);
}

TEST(TextSource, JsonLinesAreJoinedByABlankLine) {
  EXPECT_EQ(text_of(kLines), kJoined);
  EXPECT_EQ(read(kLines).source.documents, 3);
  EXPECT_EQ(text_of("\xEF\xBB\xBF\n" + kLines), kJoined);
  EXPECT_EQ(text_of("{\"content\": \"c\", \"text\": 3}", "content"), "c");
  EXPECT_EQ(text_of("{\"text\": \"rendered\", \"messages\": []}"), "rendered");
  EXPECT_EQ(read("{\"text\": \"\xFF\"}\n").source.text, "\xEF\xBF\xBD");
}

TEST(TextSource, AJsonArrayIsItsObjects) {
  EXPECT_EQ(text_of("[{\"text\": \"a ] } , \\\" \"}, {\"text\":\"b\", \"meta\": {\"c\": [{}]}}\n]\n"),
            "a ] } , \" \n\nb");
  EXPECT_EQ(text_of("\n[\n  {\n    \"text\": \"a\"\n  }\n]"), "a");
  refused("[{\"text\": \"a\"},\n {\"text\": 1}]", {"line 2", "of type number"});
  refused("[{\"text\": \"a\"}", {"line 1", "expected a comma", "the file ends"});
  refused("[{\"text\": \"a\"},\n\n]", {"line 3", "expected an object"});
  refused("[{\"text\": \"a\"}]\nmore", {"line 2", "nothing after the array"});
  refused("[{\"text\": \"a", {"line 1", "not JSON"});
  refused("[{\"text\": \"a\" \"b\"}]", {"line 1", "not JSON"});
}

TEST(TextSource, ALineThatGivesNoTextIsNamedWithTheRemedy) {
  refused("{\"text\": \"a\"}\n{\"id\": 1, \"content\": \"long enough\", \"url\": \"x\"}",
          {"line 2", "no member 'text'", "'content', 'id', 'url'", "--text-field content"});
  refused("{\"id\": 1}", {"line 1", "none of them is a text"});
  refused("{\"text\": \"a\"}\n{}", {"line 2", "no members"});
  refused("{\"text\": null}", {"line 1", "of type null"});
  refused("{\"text\": \"a\"}\n\n[1]", {"line 3", "array, not an object"});
  refused("{\"text\": \"a\"}\n{\"text\": \"b\"", {"line 2", "not JSON"});
  refused("{\"text\": \"b\"\n{\"text\": \"a\"}", {"line 1", "not JSON"});
  refused("{\"text\": \"a\", \"text\": \"b\"}", {"line 1", "given twice"});
  refused("{\"text\": " + std::string(70, '[') + std::string(70, ']') + "}", {"line 1", "nested deeper"});
  refused("{\"a\\n\\u001b[31m\": \"x\"}", {"'a??[31m'", "--text-field"});
  refused("{\"text\": \"\"}", {"the text is empty"});
}

TEST(TextSource, ChatsAreRefusedWithTheWayOut) {
  refused("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}",
          {"line 1", "a chat (messages)", "apply_chat_template(json.loads(x)['messages']"});
  refused("[{\"conversations\": [{\"from\": \"human\", \"value\": \"hi\"}]}]",
          {"a chat (conversations)", "apply_chat_template", "'human': 'user'"});
}

TEST(TextSource, JsonThatIsNotReadAsSuchIsWarnedOf) {
  const Read pretty = read("{\n  \"text\": \"a\"\n}\n");
  EXPECT_EQ(pretty.source.documents, 0);
  ASSERT_EQ(pretty.warnings.size(), 1U);
  EXPECT_NE(pretty.warnings[0].find("jq -c"), std::string::npos);
  const Read named = read("plain", "content");
  ASSERT_EQ(named.warnings.size(), 1U);
  EXPECT_NE(named.warnings[0].find("--text-field"), std::string::npos);
}

TEST(TextSource, WhatIsNoTextIsRefusedByName) {
  const std::vector<std::array<std::string, 3>> formats = {
      {"PAR1\x15\x04\x15 rest PAR1"s, "Parquet", "to_json"},
      {"ARROW1\0\0 rest"s, "Arrow", "to_json"},
      {"%PDF-1.7\n"s, "PDF", "pdftotext"},
      {"PK\x03\x04\x14"s, "zip", "unzip"},
      {"PK\x05\x06"s, "zip", "unzip"},
      {"BZh91AY&SY rest"s, "bzip2", "bzip2 -dc"},
      {"BZh9\x17\x72\x45\x38\x50\x90"s, "bzip2", "bzip2 -dc"},
      {"\xFD\x37zXZ\0 rest"s, "xz", "xz -dc"},
      {"\x28\xB5\x2F\xFD rest"s, "zstd", "zstd -dc"},
      {"\x04\x22\x4D\x18 rest"s, "lz4", "lz4 -dc"},
      {"7z\xBC\xAF\x27\x1C rest"s, "7-Zip", "7z x"},
      {"\x89HDF\r\n\x1a\n rest"s, "HDF5", "JSONL"},
      {"\x93NUMPY\x01"s, "NumPy", "--tokens"},
      {"SQLite format 3\0 rest"s, "SQLite", "sqlite3"},
      {"GGUF\x03\0\0\0 rest"s, "GGUF", "--model"},
      {"\x80\x04\x95 rest"s, "pickle", "json.dumps"},
      {"{\\rtf1 rest}"s, "RTF", "pandoc"},
      {"\xFF\xFEh\0i\0"s, "UTF-16", "iconv -f UTF-16 -t UTF-8"},
      {"\xFE\xFF\0h\0i"s, "UTF-16", "iconv -f UTF-16 -t UTF-8"},
      {"\xFF\xFE\0\0h\0\0\0"s, "UTF-32", "iconv -f UTF-32 -t UTF-8"},
      {"\0\0\xFE\xFF\0\0\0h"s, "UTF-32", "iconv -f UTF-32 -t UTF-8"},
      {"name.txt" + std::string(249, '\0') + "ustar\0rest"s, "tar", "tar -xf"},
      {"text and\0more"s, "binary", "offset 8"},
  };
  for (const auto& [bytes, name, way_out] : formats) {
    refused(bytes, {name, way_out});
    refused(packed(bytes), {name, way_out});
  }
  refused("", {"the text is empty"});
}

/// Files and pipes.
class TextSourceFile : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "text_source_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  void TearDown() override { fs::remove_all(folder_); }

  SourceText read_file(const fs::path& file, int standard_input = -1) {
    base::Progress progress;
    return read_source(file, kDefaultTextField, progress, warnings_, standard_input);
  }

  /// Reads standard input, a pipe that gives `content` a little at a time.
  SourceText read_standard_input(const std::string& content) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe(ends.data()), 0);
    std::thread writer([&] {
      for (std::size_t at = 0; at < content.size(); at += 1000) {
        const std::string part = content.substr(at, 1000);
        EXPECT_EQ(::write(ends[1], part.data(), part.size()), static_cast<ssize_t>(part.size()));
      }
      ::close(ends[1]);
    });
    const auto finish = [&] {
      writer.join();
      ::close(ends[0]);
    };
    try {
      SourceText source = read_file("-", ends[0]);
      finish();
      return source;
    } catch (...) {
      finish();
      throw;
    }
  }

  fs::path folder_;
  std::vector<std::string> warnings_;
};

TEST_F(TextSourceFile, AFileHasItsNameWithoutFolder) {
  std::ofstream(folder_ / "liar.jsonl", std::ios::binary) << packed("plain");
  const SourceText source = read_file(folder_ / "liar.jsonl");
  EXPECT_EQ(source.info, (formats::TextInfo{"liar.jsonl", base::sha256_hex(packed("plain"))}));
  EXPECT_EQ(source.text, "plain");
  EXPECT_THROW((void)read_file(folder_ / "none"), base::SystemError);
  EXPECT_THROW((void)read_file(folder_), base::SystemError);
  std::ofstream(folder_ / "empty");
  EXPECT_NE(error_of([&] { return read_file(folder_ / "empty"); }).find("empty: the text is empty"),
            std::string::npos);
}

TEST_F(TextSourceFile, StandardInputIsAnyKindOfFile) {
  const std::string text = std::string(50000, 'a') + "b";
  EXPECT_EQ(read_standard_input(text).text, text);
  EXPECT_EQ(read_standard_input(packed(kLines)).text, kJoined);
  EXPECT_EQ(read_standard_input(text).info, (formats::TextInfo{"-", base::sha256_hex(text)}));
  EXPECT_NE(error_of([&] { return read_standard_input(""); }).find("standard input: the text is empty"),
            std::string::npos);
}

TEST_F(TextSourceFile, ATerminalIsWrongUsage) {
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY);
  if (terminal < 0 || ::isatty(terminal) == 0) GTEST_SKIP() << "no pseudoterminals here";
  const std::string error = error_of<base::WrongUsage>([&] { return read_file("-", terminal); });
  EXPECT_NE(error.find("standard input is a terminal"), std::string::npos) << error;
  ::close(terminal);
}

TEST_F(TextSourceFile, ANamedPipeIsReadToItsEnd) {
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  std::thread writer([&] { std::ofstream(folder_ / "pipe") << "through a pipe"; });
  EXPECT_EQ(read_file(folder_ / "pipe").text, "through a pipe");
  writer.join();
}

TEST_F(TextSourceFile, AWaitForAPipeCanBeInterrupted) {
  class Stop final : public base::Progress {
    void check_interrupted() override {
      if (++looks_ > 2) throw base::Interrupted(2);
    }
    int looks_ = 0;
  } stop;
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  EXPECT_THROW((void)read_source("-", kDefaultTextField, stop, warnings_, ends[0]), base::Interrupted);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(TextSource, StandardInputIsNamedOnce) {
  const std::vector<fs::path> once = {"a", "-", "./-"};
  EXPECT_NO_THROW(check_sources(once));
  const std::vector<fs::path> twice = {"-", "a", "-"};
  EXPECT_NE(error_of<base::WrongUsage>([&] {
              check_sources(twice);
              return 0;
            }).find("more than once"),
            std::string::npos);
}

TEST(TextSource, ACompressedCrawlIsItsDocuments) {
  const fs::path file = fs::path(KVCAL_SHARED_DATA) / "text/c4-sample.00000-of-00001.json.gz";
  if (!fs::exists(file)) GTEST_SKIP() << "no " << file;
  base::Progress progress;
  std::vector<std::string> warnings;
  const SourceText source = read_source(file, kDefaultTextField, progress, warnings);
  EXPECT_EQ(source.documents, 1000);
  EXPECT_TRUE(warnings.empty());
  EXPECT_EQ(source.text.find("\"url\":"), std::string::npos);
}

}  // namespace
}  // namespace kvcal::calib
