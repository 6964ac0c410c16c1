#include "calib/engine/work_folder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "calib/engine/activation_store.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;

class WorkFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = fs::temp_directory_path() / ("kvcal_work_" + std::to_string(::getpid()));
    fs::remove_all(path_);
  }
  void TearDown() override { fs::remove_all(path_); }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& item : fs::directory_iterator(path_)) result.push_back(item.path().filename().string());
    std::sort(result.begin(), result.end());
    return result;
  }
  fs::path path_;
};

TEST_F(WorkFolderTest, GoesOnWithTheSameRunOnly) {
  { const WorkFolder first(path_, R"({"tokens": "a", "--sinks": 1})"); }
  { const WorkFolder again(path_, R"({"--sinks": 1, "tokens": "a"})"); }
  try {
    const WorkFolder other(path_, R"({"tokens": "a", "--sinks": 4})");
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("--sinks (1 there, 4 here)"), std::string::npos) << error.what();
  }
}

TEST_F(WorkFolderTest, IsLockedWhileInUse) {
  const WorkFolder first(path_, "{}");
  EXPECT_THROW(WorkFolder(path_, "{}"), base::SystemError);
}

TEST_F(WorkFolderTest, DoesNotTakeOverAForeignFolder) {
  fs::create_directories(path_);
  std::ofstream(path_ / "thesis.tex") << "years of work";
  EXPECT_THROW(WorkFolder(path_, "{}"), base::InvalidInput);
  EXPECT_TRUE(fs::exists(path_ / "thesis.tex"));
  EXPECT_EQ(names().size(), 1U);  // not even a lock was left in it
  // A name that looks as if it could be dropped is no reason to.
  fs::rename(path_ / "thesis.tex", path_ / "thesis.tmp");
  EXPECT_THROW(WorkFolder(path_, "{}"), base::InvalidInput);
  EXPECT_THROW((void)WorkFolder::find(path_, "{}", {}), base::InvalidInput);
  EXPECT_TRUE(fs::exists(path_ / "thesis.tmp"));
}

TEST_F(WorkFolderTest, FinishRemovesItsOwnFilesAndTheFolderItMade) {
  WorkFolder folder(path_, "{}");
  folder.save_losses({1, 2});
  std::ofstream(folder.hidden_file(3)) << "x";
  folder.finish();
  EXPECT_FALSE(fs::exists(path_));
}

TEST_F(WorkFolderTest, FinishLeavesForeignFilesAndTheirFolder) {
  WorkFolder folder(path_, "{}");
  folder.save_losses({1, 2});
  fs::create_directories(path_ / "hidden_0001.bin");  // a folder of that name is not ours either
  for (const char* name :
       {"thesis.tex", "hidden_1.bin", "hidden_00001.bin", "layer_0001.h5.bak", ".thesis.tmp"})
    std::ofstream(path_ / name) << "years of work";
  folder.finish();
  EXPECT_EQ(names(), (std::vector<std::string>{".thesis.tmp", "hidden_00001.bin", "hidden_0001.bin",
                                               "hidden_1.bin", "layer_0001.h5.bak", "thesis.tex"}));
}

TEST_F(WorkFolderTest, FinishLeavesAFolderThatWasThereBefore) {
  fs::create_directories(path_);
  { const WorkFolder killed(path_, "{}"); }
  WorkFolder(path_, "{}").finish();
  EXPECT_TRUE(fs::is_directory(path_));
  EXPECT_TRUE(names().empty());
}

TEST_F(WorkFolderTest, DamagedLossesAreFoundAndNamed) {
  const WorkFolder folder(path_, "{}");
  const CheckpointShape shape{1, 2, 100};
  folder.save_losses({1, 2});
  EXPECT_TRUE(WorkFolder::find(path_, "{}", shape).losses.has_value());
  const std::string whole = base::read_text_file(path_ / "head.json");
  std::string digit = whole;
  digit[digit.find("2.0")] = '3';
  for (const std::string& text :
       {std::string(), std::string("[1]"), std::string("{}"), std::string("nonsense"),
        std::string(200000, '['), digit, whole.substr(0, whole.size() - 1)}) {
    std::ofstream(path_ / "head.json") << text;
    const Checkpoints found = WorkFolder::find(path_, "{}", shape);
    EXPECT_FALSE(found.losses.has_value()) << text;
    ASSERT_EQ(found.damaged.size(), 1U) << text;
    EXPECT_EQ(found.damaged[0].file(), path_ / "head.json");
    EXPECT_TRUE(fs::exists(path_ / "head.json"));  // only looked at
  }
}

TEST_F(WorkFolderTest, AUsersFileOfTheLocksNameIsNotTakenForOne) {
  fs::create_directories(path_);
  std::ofstream(path_ / "lock") << "the key is under the mat";
  EXPECT_THROW(WorkFolder(path_, "{}"), base::InvalidInput);
  EXPECT_EQ(base::read_text_file(path_ / "lock"), "the key is under the mat");
}

TEST_F(WorkFolderTest, ADamagedRunFileIsNotTakenForAnotherRuns) {
  { const WorkFolder first(path_, R"({"tokens": "a"})"); }
  std::ofstream(path_ / "run.json") << R"({"tokens": "a")";
  try {
    const WorkFolder again(path_, R"({"tokens": "a"})");
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("run.json: damaged"), std::string::npos) << error.what();
  }
}

TEST_F(WorkFolderTest, AnUnreadableCheckpointIsAnErrorAndStays) {
  const WorkFolder folder(path_, "{}");
  // A folder in its place: opened, it cannot be read, for root neither.
  fs::create_directories(path_ / "layer_0000.h5");
  EXPECT_THROW((void)WorkFolder::find(path_, "{}", {1, 2, 100}), base::SystemError);
  EXPECT_TRUE(fs::exists(path_ / "layer_0000.h5"));
}

class ActivationStoreTest : public WorkFolderTest {
 protected:
  void SetUp() override {
    WorkFolderTest::SetUp();
    fs::create_directories(path_);
  }
  std::unique_ptr<ActivationStore> make(std::int64_t cache_bytes) {
    return std::make_unique<ActivationStore>(std::vector<std::int64_t>{5, 3}, 4, at::kFloat, cache_bytes,
                                             [this](int layer) { return path_ / std::to_string(layer); });
  }
};

TEST_F(ActivationStoreTest, GivesBackTheSameBitsWithAnyCache) {
  at::manual_seed(1);
  const at::Tensor first = at::randn({5, 4}), second = at::randn({3, 4});
  for (const std::int64_t cache : {0, 60, 100000}) {
    const auto store = make(cache);
    for (int layer = 0; layer < 3; ++layer) {
      store->put(layer, 0, first + layer);
      store->put(layer, 1, second + layer);
      store->finish(layer);
    }
    for (int layer = 2; layer >= 0; --layer) {
      EXPECT_TRUE(at::equal(store->get(layer, 0), first + layer)) << cache;
      EXPECT_TRUE(at::equal(store->get(layer, 1), second + layer)) << cache;
      store->drop(layer);
      EXPECT_FALSE(fs::exists(path_ / std::to_string(layer)));
    }
  }
}

TEST_F(ActivationStoreTest, AnotherRunReadsWhatOneFinished) {
  const at::Tensor value = at::randn({5, 4});
  {
    const auto store = make(0);
    store->put(7, 0, value);
    store->put(7, 1, value.slice(0, 0, 3));
    store->finish(7);
    store->put(8, 0, value);
  }
  const auto store = make(0);
  EXPECT_TRUE(at::equal(store->get(7, 0), value));
  // Layer 8 was not whole: nothing of it is left.
  EXPECT_EQ(std::distance(fs::directory_iterator(path_), fs::directory_iterator()), 1);
}

TEST_F(ActivationStoreTest, WhatIsNotWhatWasWrittenIsNotRead) {
  const auto write = [&] {
    const auto store = make(0);
    store->put(2, 0, at::ones({5, 4}));
    store->put(2, 1, at::ones({3, 4}));
    store->finish(2);
  };
  write();
  const auto size = static_cast<std::int64_t>(fs::file_size(path_ / "2"));
  EXPECT_EQ(size, activation_file_bytes(2, 8, 4, at::kFloat));
  fs::resize_file(path_ / "2", static_cast<std::uintmax_t>(size - 1));
  EXPECT_THROW((void)make(0)->get(2, 0), DamagedCheckpoint);
  write();
  std::fstream(path_ / "2").seekp(5 * 4 * 4 + 7).put('x');
  EXPECT_NO_THROW((void)make(0)->get(2, 0));
  try {
    (void)make(0)->get(2, 1);
    FAIL();
  } catch (const DamagedCheckpoint& damage) {
    EXPECT_EQ(damage.file(), path_ / "2");
    EXPECT_NE(std::string(damage.what()).find("sample 1"), std::string::npos) << damage.what();
  }
  fs::remove(path_ / "2");
  EXPECT_THROW((void)make(0)->get(2, 0), base::SystemError);
}

}  // namespace
}  // namespace kvcal::calib
