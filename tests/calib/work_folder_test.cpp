#include "calib/work_folder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"
#include "calib/activation_store.h"

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
      EXPECT_TRUE(store->finished(layer));
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
  EXPECT_TRUE(store->finished(7));
  EXPECT_TRUE(at::equal(store->get(7, 0), value));
  // Layer 8 was not whole: nothing of it is left.
  EXPECT_FALSE(store->finished(8));
  EXPECT_EQ(std::distance(fs::directory_iterator(path_), fs::directory_iterator()), 1);
}

TEST_F(ActivationStoreTest, ATruncatedFileIsNotFinishedAndNotRead) {
  std::ofstream(path_ / "2") << "short";
  const auto store = make(0);
  EXPECT_FALSE(store->finished(2));
  EXPECT_THROW((void)store->get(2, 0), base::InvalidInput);
}

}  // namespace
}  // namespace kvcal::calib
