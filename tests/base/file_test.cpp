#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/new_file.h"

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

  fs::path folder_;
};

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

TEST_F(FileTest, LockTellsANewFileWhatToSay) {
  const fs::path path = folder_ / "lock";
  { const FileLock lock(path, "first"); }
  { const FileLock lock(path, "second"); }
  EXPECT_EQ(read_text_file(path), "first");
}

TEST_F(FileTest, AnUnlinkedLockIsNotTaken) {
  const fs::path path = folder_ / "lock";
  std::optional<FileLock> first;
  first.emplace(path);
  fs::remove(path);
  // A file of the same name is another lock; and once it is there, nobody gets the old one.
  const FileLock second(path);
  first.reset();
  EXPECT_FALSE(another_process_can_lock(path));
}

TEST_F(FileTest, ReadsWholeFilesWithinALimit) {
  std::ofstream(folder_ / "a") << "hello";
  EXPECT_EQ(read_file(folder_ / "a", 5).size(), 5U);
  EXPECT_THROW((void)read_file(folder_ / "a", 4), InvalidInput);
  EXPECT_THROW((void)read_file(folder_ / "absent", 4), SystemError);
  EXPECT_THROW((void)read_file(folder_, 4), SystemError);
}

TEST_F(FileTest, LiesInFollowsLinksAndDots) {
  fs::create_directories(folder_ / "work" / "inner");
  fs::create_directory_symlink(folder_ / "work", folder_ / "link");
  EXPECT_TRUE(lies_in(folder_ / "work" / "a.h5", folder_ / "work"));
  EXPECT_TRUE(lies_in(folder_ / "work" / "new" / "a.h5", folder_ / "work"));
  EXPECT_TRUE(lies_in(folder_ / "link" / "a.h5", folder_ / "work"));
  EXPECT_TRUE(lies_in(folder_ / "work", folder_ / "link"));
  EXPECT_TRUE(lies_in(folder_ / "work" / "inner" / ".." / "a.h5", folder_ / "work" / ""));
  EXPECT_FALSE(lies_in(folder_ / "work" / ".." / "a.h5", folder_ / "work"));
  EXPECT_FALSE(lies_in(folder_ / "workshop" / "a.h5", folder_ / "work"));
  EXPECT_FALSE(lies_in(folder_ / "absent" / "a.h5", folder_ / "work"));
  EXPECT_TRUE(lies_in(folder_ / "absent" / "a.h5", folder_ / "absent"));
}

}  // namespace
}  // namespace kvcal::base
