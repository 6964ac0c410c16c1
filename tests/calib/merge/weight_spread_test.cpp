#include "calib/merge/weight_spread.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace kvcal::calib {
namespace {

const std::vector<float> kEven(128, 1.0F / 128);

TEST(WeightSpread, OfEvenWeightIsThatOfAUniformQuantiser) {
  const WeightSpread even(kEven);
  for (const int k : {1, 2, 4, 8, 15}) {
    std::vector<double> levels;
    for (int i = 0; i < k; ++i) levels.push_back(-1 + (2.0 * i + 1) / k);
    const auto nearest = even.by_level(levels);
    for (std::size_t i = 0; i < levels.size(); ++i) {
      EXPECT_NEAR(nearest[i].share, 1.0 / k, 1e-12);
      EXPECT_NEAR(nearest[i].moment, levels[i] / k, 1e-12);
    }
    EXPECT_NEAR(even.squared_error(levels), std::pow(2.0 / k, 2) / 12, 1e-12);
  }
}

TEST(WeightSpread, CountsWhatLiesNearestToEach) {
  std::vector<float> shares(4);
  shares[1] = 0.25F, shares[3] = 0.75F;  // [-0.5, 0) and [0.5, 1)
  const WeightSpread spread(shares);
  const auto shares_of = [&](const std::vector<double>& levels) {
    std::vector<double> found;
    for (const WeightSpread::Nearest& one : spread.by_level(levels)) found.push_back(one.share);
    return found;
  };
  EXPECT_EQ(shares_of({-1.0, 0.5}), (std::vector{0.125, 0.875}));
  // Levels beyond the weight take nothing, or all.
  EXPECT_EQ(shares_of({-9.0, -7.0, 1.0}), (std::vector{0.0, 0.0, 1.0}));
  EXPECT_EQ(shares_of({3.0, 4.0, 5.0}), (std::vector{1.0, 0.0, 0.0}));
  EXPECT_NEAR(spread.squared_error(std::vector{0.75}), 0.25 * (1.0 + 0.25 / 12) + 0.75 * 0.25 / 12, 1e-12);
}

// A normal distribution cut at +-1 by a quantiser whose end levels are means of what lies beyond, too.
TEST(WeightSpread, FindsWhatLiesBeyondTheEnds) {
  const auto below = [](double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; };
  const auto density = [](double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0)); };
  // Levels -a and a of the optimum for two levels, sqrt(2 / pi), become -1 and 1.
  const double unit = std::sqrt(2 / std::acos(-1.0));
  std::vector<float> shares(128);
  for (std::size_t i = 0; i < shares.size(); ++i) {
    const double begin = unit * (-1 + static_cast<double>(i) / 64);
    shares[i] = static_cast<float>(below(begin + unit / 64) - below(begin));
  }
  shares.front() += static_cast<float>(below(-unit));
  shares.back() += static_cast<float>(below(-unit));
  const std::vector<double> levels = {-1, 1};
  const auto nearest = WeightSpread(shares, levels).by_level(levels);
  EXPECT_NEAR(nearest[0].share, 0.5, 1e-6);
  EXPECT_NEAR(nearest[0].moment / nearest[0].share, -1, 1e-6);
  EXPECT_NEAR(nearest[1].moment / nearest[1].share, 1, 1e-6);
  // What lies beyond has its mean there, as far as the bins tell.
  const double tail = density(unit) / below(-unit) / unit;
  const auto far = WeightSpread(shares, levels).by_level(std::vector{-tail, 0.0, tail});
  const double border = tail / 2;
  EXPECT_NEAR(far[2].moment, (density(unit * border)) / unit, 2e-3);
}

}  // namespace
}  // namespace kvcal::calib
