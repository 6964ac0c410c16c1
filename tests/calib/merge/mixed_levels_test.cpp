#include "calib/merge/mixed_levels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace kvcal::calib {
namespace {

const std::vector<float> kEven(128, 1.0F / 128);

RunLevels run(std::vector<double> levels, std::vector<Normaliser> ranges, std::vector<double> weights) {
  return {std::move(levels), WeightSpread(kEven), std::move(ranges), std::move(weights)};
}

// The best levels for them.
std::vector<double> even_levels(int k, double width = 1) {
  std::vector<double> levels;
  for (int i = 0; i < k; ++i) levels.push_back(width * (-1 + (2.0 * i + 1) / k));
  return levels;
}

double place(const MixedLevels& mixed, std::size_t channel, std::size_t level) {
  return mixed.ranges[channel].range * mixed.levels[level] + mixed.ranges[channel].zero;
}

TEST(MixedLevels, OfOneRunAreItsOwn) {
  const std::vector<RunLevels> runs = {run(even_levels(4), {{5, 2}, {-1, 0.1}}, {3, 1})};
  const MixedLevels mixed = mix_levels(runs);
  for (std::size_t c = 0; c < 2; ++c) {
    for (std::size_t k = 0; k < 4; ++k)
      EXPECT_NEAR(place(mixed, c, k), runs[0].ranges[c].range * runs[0].levels[k] + runs[0].ranges[c].zero,
                  1e-9);
  }
  EXPECT_NEAR(mixed.excess, 0, 1e-12);
}

// Two runs of one channel, evenly spread over [-1, 1] and over [0, 2]: together twice as dense in [0, 1]. By symmetry the border of two levels
// lies at 1/2; above it half a unit has twice the density of the unit after it.
TEST(MixedLevels, AreTheBestForTheNumbersOfBoth) {
  const std::vector<RunLevels> runs = {run(even_levels(2), {{0, 1}}, {1}),
                                       run(even_levels(2), {{1, 1}}, {1})};
  const MixedLevels mixed = mix_levels(runs);
  const double upper = (2 * 0.5 * 0.75 + 1 * 1.5) / (2 * 0.5 + 1);
  EXPECT_NEAR(place(mixed, 0, 1), upper, 1e-4);
  EXPECT_NEAR(place(mixed, 0, 0), 1 - upper, 1e-4);
  // What is left of both: means of squares less squares of means, by halves.
  const double squares = (2 * (1.0 - 0.125) / 3 + (8.0 - 1) / 3) / 2;
  const double left = 2 * (squares - upper * upper);
  EXPECT_NEAR(mixed.excess, left - 2 * (0.25 / 3), 1e-3);
}

TEST(MixedLevels, CountByTheirWeights) {
  std::vector<double> found;
  for (const double weight : {0.0, 1.0, 1e9}) {
    const std::vector<RunLevels> runs = {run(even_levels(2), {{0, 1}}, {1}),
                                         run(even_levels(2), {{1, 1}}, {weight})};
    found.push_back(place(mix_levels(runs), 0, 1));
  }
  EXPECT_NEAR(found[0], 0.5, 1e-9);
  EXPECT_LT(found[0], found[1]);
  EXPECT_LT(found[1], found[2]);
  EXPECT_NEAR(found[2], 1.5, 1e-3);
}

// Even weight is best kept at +-0.5: the first run loses nothing by it, the second, which had others, can only gain.
TEST(MixedLevels, OfGivenRanges) {
  const std::vector<RunLevels> runs = {run({-0.5, 0.5}, {{0, 1}}, {3}), run({-0.6, 0.6}, {{0, 1}}, {3})};
  const MixedLevels mixed = mix_levels(runs, {{0, 1}});
  EXPECT_EQ(mixed.ranges[0].range, 1);
  EXPECT_NEAR(mixed.levels[0], -0.5, 1e-3);
  EXPECT_NEAR(mixed.levels[1], 0.5, 1e-3);
  EXPECT_EQ(mixed.excess, 0);
}

// The same quantiser written in other units is the same.
TEST(MixedLevels, AskNotForTheUnitsOfARun) {
  // Half as wide: all weight in the middle half.
  std::vector<float> shares(128);
  std::fill(shares.begin() + 32, shares.begin() + 96, 1.0F / 64);
  const std::vector<RunLevels> runs = {
      run(even_levels(4), {{5, 2}, {-1, 0.1}}, {3, 1}),
      {even_levels(4, 0.5), WeightSpread(shares), {{5, 4}, {-1, 0.2}}, {1, 7}}};
  const MixedLevels mixed = mix_levels(runs);
  for (std::size_t c = 0; c < 2; ++c) {
    for (std::size_t k = 0; k < 4; ++k)
      EXPECT_NEAR(place(mixed, c, k), runs[0].ranges[c].range * runs[0].levels[k] + runs[0].ranges[c].zero,
                  1e-6);
  }
}

TEST(MixedLevels, OfConstantAndWeightlessChannels) {
  // The first channel is constant in both, the second in one; the third has no weight in either.
  const std::vector<RunLevels> runs = {run({-1, 0.1, 1}, {{4, 0}, {2, 0}, {1, 1}}, {1, 1, 0}),
                                       run({-1, 0.1, 1}, {{4, 0}, {1, 3}, {9, 9}}, {1, 2, 0})};
  const MixedLevels mixed = mix_levels(runs);
  double nearest = 9;
  for (std::size_t k = 0; k < 3; ++k) nearest = std::min(nearest, std::abs(place(mixed, 0, k) - 4));
  EXPECT_NEAR(nearest, 0, 1e-9);
  EXPECT_GT(mixed.ranges[1].range, 0);
  for (const Normaliser& range : mixed.ranges) {
    EXPECT_TRUE(std::isfinite(range.zero));
    EXPECT_GE(range.range, 0);
  }
  EXPECT_TRUE(std::ranges::is_sorted(mixed.levels));
  EXPECT_TRUE(std::isfinite(mixed.excess));
}

}  // namespace
}  // namespace kvcal::calib
