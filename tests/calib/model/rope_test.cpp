#include "calib/model/parts/rope.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace kvcal::calib {
namespace {

TEST(Rope, RotationKeepsTheNormOfEachPair) {
  const auto table = rotary_table(RopeConfig{}, 8, 100);
  const at::Tensor x = at::randn({100, 2, 8});
  const at::Tensor y = rotate(x, table);
  const auto norms = [](const at::Tensor& t) {
    return t.slice(2, 0, 4).square() + t.slice(2, 4, 8).square();
  };
  EXPECT_TRUE(at::allclose(norms(x), norms(y), 1e-5, 1e-6));
}

TEST(Rope, ScoresDependOnTheDistanceOnly) {
  const auto table = rotary_table(RopeConfig{}, 16, 64);
  const at::Tensor q = at::randn({1, 1, 16}).expand({64, 1, 16});
  const at::Tensor k = at::randn({1, 1, 16}).expand({64, 1, 16});
  const at::Tensor rq = rotate(q, table).squeeze(1);
  const at::Tensor rk = rotate(k, table).squeeze(1);
  const at::Tensor scores = at::matmul(rq, rk.t());
  EXPECT_NEAR(scores[20][10].item<double>(), scores[60][50].item<double>(), 1e-4);
}

TEST(Rope, FarPositionsAreExact) {
  const auto table = rotary_table(RopeConfig{}, 4, 100001);
  EXPECT_FLOAT_EQ(table.cosines[100000][0].item<float>(), static_cast<float>(std::cos(100000.0)));
}

TEST(Rope, LinearScalingDividesEveryFrequency) {
  RopeConfig rope;
  rope.type = RopeType::linear;
  rope.factor = 4;
  const auto plain = inverse_frequencies(RopeConfig{}, 8, 10);
  const auto scaled = inverse_frequencies(rope, 8, 10);
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_DOUBLE_EQ(scaled[i], plain[i] / 4);
}

TEST(Rope, Llama3KeepsShortWavelengthsAndStretchesLongOnes) {
  RopeConfig rope;
  rope.type = RopeType::llama3;
  rope.theta = 500000;
  rope.factor = 8;
  rope.original_max_positions = 8192;
  const auto scaled = inverse_frequencies(rope, 128, 10);
  rope.type = RopeType::standard;
  const auto plain = inverse_frequencies(rope, 128, 10);
  EXPECT_DOUBLE_EQ(scaled.front(), plain.front());
  EXPECT_DOUBLE_EQ(scaled.back(), plain.back() / 8);
}

TEST(Rope, DynamicScalingBeginsBeyondTheTrainedLength) {
  RopeConfig rope;
  rope.type = RopeType::dynamic;
  rope.factor = 2;
  rope.original_max_positions = 64;
  EXPECT_EQ(inverse_frequencies(rope, 8, 64), inverse_frequencies(RopeConfig{}, 8, 64));
  EXPECT_LT(inverse_frequencies(rope, 8, 128).back(), inverse_frequencies(RopeConfig{}, 8, 128).back());
}

}  // namespace
}  // namespace kvcal::calib
