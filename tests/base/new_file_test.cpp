#include "base/new_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <optional>
#include <vector>

#include "base/checksum.h"
#include "base/error.h"
#include "base/file.h"

namespace kvcal::base {
namespace {

namespace fs = std::filesystem;

// A folder of its own for each test, removed at its end.
class NewFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "kvcal-new-file-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& entry : fs::directory_iterator(folder_))
      result.push_back(entry.path().filename().string());
    std::sort(result.begin(), result.end());
    return result;
  }

  fs::path folder_;
};

using Names = std::vector<std::string>;

TEST_F(NewFileTest, WritesWholeAndReplaces) {
  write_file_atomically(folder_ / "a", std::string_view("first"));
  write_file_atomically(folder_ / "a", std::string_view("second\0one", 10));
  EXPECT_EQ(read_text_file(folder_ / "a"), std::string("second\0one", 10));
  EXPECT_EQ(names(), Names{"a"});
}

TEST_F(NewFileTest, FailureLeavesNothingBehind) {
  EXPECT_THROW(write_file_atomically(folder_ / "missing" / "a", std::string_view("x")), SystemError);
  EXPECT_EQ(names(), Names{});
  // The target is a folder with something in it: the rename fails after the temporary was written.
  fs::create_directories(folder_ / "taken" / "inner");
  EXPECT_THROW(write_file_atomically(folder_ / "taken", std::string_view("x")), SystemError);
  EXPECT_EQ(names(), Names{"taken"});
}

TEST_F(NewFileTest, NothingIsLeftOfOneThatIsNotPublished) {
  {
    NewFile file(folder_ / "a");
    file.write("half");
    ASSERT_EQ(names().size(), 1U);
    EXPECT_EQ(name_of_unfinished(names()[0]), "a");
  }
  EXPECT_EQ(names(), Names{});
}

TEST_F(NewFileTest, WritesAtAnyPlace) {
  NewFile file(folder_ / "a");
  file.write_at(5, std::as_bytes(std::span("world", 5)));
  file.write_at(0, std::as_bytes(std::span("hello", 5)));
  file.publish();
  EXPECT_EQ(read_text_file(folder_ / "a"), "helloworld");
}

TEST_F(NewFileTest, NamesOfUnfinishedFiles) {
  EXPECT_EQ(name_of_unfinished(".out.h5.0123456789abcdef.tmp"), "out.h5");
  for (const char* other :
       {"out.h5", ".tmp", ".out.h5.tmp", ".out.h5.1234.tmp", ".out.h5.0123456789abcdeg.tmp",
        "out.h5.0123456789abcdef.tmp", "..0123456789abcdef.tmp", ".0123456789abcdef.tmp"})
    EXPECT_EQ(name_of_unfinished(other), "") << other;
}

// What a killed process left goes; what a living one writes stays, whatever their process ids.
TEST_F(NewFileTest, ALockDecidesWhatIsLeftBehind) {
  const pid_t child = ::fork();
  if (child == 0) {
    const NewFile half(folder_ / "dead");
    ::raise(SIGKILL);
  }
  ::waitpid(child, nullptr, 0);
  ASSERT_EQ(names().size(), 1U);
  std::ofstream(folder_ / ".dead.thesis.tmp") << "not ours";
  std::optional<NewFile> living;
  living.emplace(folder_ / "dead");
  ASSERT_EQ(names().size(), 3U);

  remove_unfinished(folder_, "other");
  EXPECT_EQ(names().size(), 3U);
  remove_unfinished(folder_, "dead");
  EXPECT_EQ(names().size(), 2U);
  EXPECT_TRUE(fs::exists(folder_ / ".dead.thesis.tmp"));
  living->write("whole");
  living->publish();
  remove_unfinished(folder_);
  EXPECT_EQ(names(), (Names{".dead.thesis.tmp", "dead"}));
  EXPECT_EQ(read_text_file(folder_ / "dead"), "whole");
}

TEST(Checksum, AnyChangedByteOrLengthChangesIt) {
  std::vector<std::byte> bytes(100);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37);
  const std::uint64_t whole = checksum(bytes);
  EXPECT_EQ(checksum(bytes), whole);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (const auto flip : {std::byte{1}, std::byte{0x80}, std::byte{0xff}}) {
      bytes[i] ^= flip;
      EXPECT_NE(checksum(bytes), whole) << i;
      bytes[i] ^= flip;
    }
    EXPECT_NE(checksum(std::span(bytes).first(i)), whole) << i;
  }
  std::swap_ranges(bytes.begin(), bytes.begin() + 8, bytes.begin() + 32);
  EXPECT_NE(checksum(bytes), whole);
}

}  // namespace
}  // namespace kvcal::base
