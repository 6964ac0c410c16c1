// A damaged, missing or unreadable checkpoint is never the end of a run.
#include "tiny_run.h"

namespace kvcal::calib {
namespace {

enum class Damage { kChanged, kCutShort, kDeleted };

/// Flips the first byte from the middle on whose change the reader can tell: HDF5 leaves gaps in a file.
void flip_byte_of_codebook(const fs::path& file) {
  const std::string whole = bytes_of(file);
  for (std::size_t place = whole.size() / 2; place < whole.size(); ++place) {
    std::string changed = whole;
    changed[place] = static_cast<char>(changed[place] ^ 0x10);
    write_bytes(file, changed);
    try {
      (void)formats::read_codebook(file);
    } catch (const base::InvalidInput&) {
      return;
    }
  }
  FAIL() << "no change is seen";
}

void inflict(Damage damage, const fs::path& file) {
  if (damage == Damage::kDeleted) {
    fs::remove(file);
  } else if (damage == Damage::kCutShort) {
    fs::resize_file(file, fs::file_size(file) - 1);
  } else if (file.extension() == ".json") {
    write_bytes(file, "nonsense");  // another digit would still be a loss
  } else if (file.extension() == ".h5") {
    flip_byte_of_codebook(file);
  } else {
    std::string bytes = bytes_of(file);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 0x10);
    write_bytes(file, bytes);
  }
}

class DamagedFileTest : public CalibrateTest,
                        public testing::WithParamInterface<std::tuple<StopPoint, Damage>> {};

TEST_P(DamagedFileTest, IsMadeAgain) {
  const auto& [point, damage] = GetParam();
  ASSERT_NO_FATAL_FAILURE(stop_at(point));
  fs::rename(work_, root_ / "stopped");
  for (const std::string& name : point.files) {
    fs::copy(root_ / "stopped", work_, fs::copy_options::recursive);
    ASSERT_NO_FATAL_FAILURE(inflict(damage, work_ / name));
    Listener listener;
    ASSERT_NO_THROW((void)calibrate(options_, listener)) << name;
    {
      SCOPED_TRACE(name);
      expect_finished();
    }
    const bool of_need = std::ranges::find(point.of_need, name) != point.of_need.end();
    if (of_need && damage != Damage::kDeleted) {
      EXPECT_TRUE(listener.warned_of(name)) << name;
    }
    fs::remove(options_.out);
  }
}

std::string damage_name(const testing::TestParamInfo<std::tuple<StopPoint, Damage>>& info) {
  constexpr const char* kDamages[] = {"Changed", "CutShort", "Deleted"};
  const auto& [point, damage] = info.param;
  return std::string(point.name) + kDamages[static_cast<std::size_t>(damage)];
}

INSTANTIATE_TEST_SUITE_P(
    Stopped, DamagedFileTest,
    testing::Combine(testing::Values(kTwoLayersForward, kOneLayerFitted, kTwoLayersFitted),
                     testing::Values(Damage::kChanged, Damage::kCutShort, Damage::kDeleted)),
    damage_name);

TEST_F(CalibrateTest, AnUnreadableFileIsAnErrorAndNothingIsTouched) {
  ASSERT_NO_FATAL_FAILURE(stop_at(kOneLayerFitted));
  fs::remove(work_ / "layer_0002.h5");
  fs::create_directories(work_ / "layer_0002.h5");
  const auto before = snapshot(root_);
  EXPECT_THROW((void)run(), base::SystemError);
  EXPECT_EQ(snapshot(root_), before);
}

TEST_F(CalibrateTest, ADryRunTellsOfDamageWhatTheRunThenDoes) {
  ASSERT_NO_FATAL_FAILURE(stop_at(kOneLayerFitted));
  options_.dry_run = true;
  EXPECT_EQ(run().plan.left.text(), "2 layers backward");
  ASSERT_NO_FATAL_FAILURE(inflict(Damage::kChanged, work_ / "layer_0002.h5"));
  const auto before = snapshot(root_);
  const CalibrationPlan plan = run().plan;
  EXPECT_EQ(snapshot(root_), before);
  EXPECT_TRUE(plan.goes_on);
  EXPECT_EQ(plan.layers_fitted, 0);
  ASSERT_EQ(plan.damaged.size(), 1U);
  EXPECT_NE(plan.damaged[0].find((work_ / "layer_0002.h5").string()), std::string::npos) << plan.damaged[0];
  EXPECT_NE(plan.damaged[0].find("3 layers backward"), std::string::npos) << plan.damaged[0];
  // The gradient at the last layer's output is still there: no forward, no head.
  EXPECT_EQ(plan.left.text(), "3 layers backward");

  options_.dry_run = false;
  Listener listener;
  EXPECT_EQ(calibrate(options_, listener).plan.left.text(), plan.left.text());
  EXPECT_EQ(listener.stages, std::vector<std::string>{"backward"});
  EXPECT_EQ(listener.stage_checks, kLayers * kSamples);
  EXPECT_TRUE(listener.warned_of(plan.damaged[0]));
  expect_finished();
}

}  // namespace
}  // namespace kvcal::calib
