#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"

namespace kvcal::base {
namespace {

namespace fs = std::filesystem;

// A folder of its own for each test, removed at its end.
class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "kvcal-file-test-XXXXXX").string();
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

TEST_F(FileTest, WritesWholeAndReplaces) {
  write_file_atomically(folder_ / "a", std::string_view("first"));
  write_file_atomically(folder_ / "a", std::string_view("second\0one", 10));
  EXPECT_EQ(read_text_file(folder_ / "a"), std::string("second\0one", 10));
  EXPECT_EQ(names(), Names{"a"});
}

TEST_F(FileTest, FailureLeavesNothingBehind) {
  EXPECT_THROW(write_file_atomically(folder_ / "missing" / "a", std::string_view("x")), SystemError);
  EXPECT_EQ(names(), Names{});
  // The target is a folder with something in it: the rename fails after the temporary was written.
  fs::create_directories(folder_ / "taken" / "inner");
  EXPECT_THROW(write_file_atomically(folder_ / "taken", std::string_view("x")), SystemError);
  EXPECT_EQ(names(), Names{"taken"});
}

TEST_F(FileTest, FailedPublishRemovesTheTemporary) {
  const fs::path temporary = temporary_name(folder_ / "a");
  EXPECT_EQ(temporary.parent_path(), folder_);
  std::ofstream(temporary) << "x";
  fs::create_directories(folder_ / "a" / "inner");
  EXPECT_THROW(publish_file(temporary, folder_ / "a"), SystemError);
  EXPECT_EQ(names(), Names{"a"});
}

TEST_F(FileTest, TheMessageNamesTheFileAndTheReason) {
  try {
    const MappedFile file(folder_ / "absent");
    FAIL();
  } catch (const SystemError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("absent"), std::string::npos) << text;
    EXPECT_NE(text.find("No such file"), std::string::npos) << text;
  }
}

TEST_F(FileTest, MapsEmptyFilesAndRefusesFolders) {
  std::ofstream(folder_ / "empty").flush();
  EXPECT_TRUE(MappedFile(folder_ / "empty").bytes().empty());
  EXPECT_THROW(MappedFile{folder_}, SystemError);
}

TEST_F(FileTest, MapMovesWithItsBytes) {
  write_file_atomically(folder_ / "a", std::string_view("hello"));
  MappedFile first(folder_ / "a");
  first.advise_will_need(first.bytes());
  first.advise_dont_need(first.bytes());
  MappedFile second = std::move(first);
  ASSERT_EQ(second.bytes().size(), 5U);
  EXPECT_EQ(second.bytes()[4], std::byte{'o'});
  MappedFile third;
  third = std::move(second);
  EXPECT_EQ(third.bytes()[0], std::byte{'h'});
  EXPECT_EQ(third.path(), folder_ / "a");
}

// Whether another process can take the lock.
bool another_process_can_lock(const fs::path& path) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      const FileLock lock(path);
      ::_exit(0);
    } catch (const SystemError&) {
      ::_exit(1);
    }
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  return WEXITSTATUS(status) == 0;
}

TEST_F(FileTest, LockExcludesOtherProcessesWhileHeld) {
  const fs::path path = folder_ / "lock";
  std::optional<FileLock> lock;
  lock.emplace(path);
  EXPECT_FALSE(another_process_can_lock(path));
  lock.reset();
  EXPECT_TRUE(another_process_can_lock(path));
}

TEST_F(FileTest, LockOfAKilledProcessIsFree) {
  const fs::path path = folder_ / "lock";
  const pid_t child = ::fork();
  if (child == 0) {
    const FileLock lock(path);
    ::raise(SIGKILL);
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_NO_THROW(FileLock{path});
}

}  // namespace
}  // namespace kvcal::base
