#include "calib/merge/mixed_quantile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "base/error.h"

namespace kvcal::calib {
namespace {

double normal_share(double x) {
  return std::erfc(-x / std::sqrt(2.0)) / 2;
}

const std::vector<double> kShares = {0.0, 0.005, 0.05, 0.95, 0.995, 1.0};
const KnownShares kKnown(100000, kShares), kKnownThrice(300000, kShares), kKnownOfMany(2000, kShares),
    kKnownOfThree(3, kShares);

// As the quantiles of a normal sample are expected to lie.
QuantileSketch normal_sample(double mean, double deviation, const KnownShares& known = kKnown) {
  // Standard normal quantiles (Abramowitz and Stegun 1964, table 26.5), the ends those of half a 100,000th.
  constexpr std::array kScores = {-4.4171734, -2.5758293, -1.6448536, 1.6448536, 2.5758293, 4.4171734};
  std::vector<double> values;
  for (const double score : kScores) values.push_back(mean + deviation * score);
  return {known, values};
}

TEST(MixedQuantile, OfNormalSamplesIsThatOfTheirMixture) {
  for (const double weight : {1.0, 3.0}) {
    const std::vector<QuantileSketch> samples = {normal_sample(0, 1),
                                                 normal_sample(0.5, 2, weight == 1 ? kKnown : kKnownThrice)};
    for (const double share : {0.005, 0.05, 0.95, 0.995}) {
      const double x = mixed_quantile(samples, share);
      const double below = (normal_share(x) + weight * normal_share((x - 0.5) / 2)) / (1 + weight);
      EXPECT_NEAR(below / share, 1, 1e-3) << "share " << share << ", weight " << weight;
    }
  }
}

// Without the ends, what is known goes on.
TEST(MixedQuantile, BeyondWhatIsKnownGoesOn) {
  const KnownShares known(100000, {0.005, 0.995});
  const auto sample = [&](double deviation) {
    return QuantileSketch(known, {-2.5758293 * deviation, 2.5758293 * deviation});
  };
  const std::vector<QuantileSketch> samples = {sample(1), sample(1.1)};
  for (const double share : {0.005, 0.995}) {
    const double x = mixed_quantile(samples, share);
    EXPECT_NEAR((normal_share(x) + normal_share(x / 1.1)) / 2, share, 1e-6);
  }
}

TEST(MixedQuantile, OfTheEndsIsExact) {
  const std::vector<QuantileSketch> samples = {normal_sample(0, 1), normal_sample(1, 3),
                                               normal_sample(-2, 0.5)};
  EXPECT_EQ(mixed_quantile(samples, 0), samples[1].value_at(0));
  EXPECT_EQ(mixed_quantile(samples, 1), samples[1].value_at(1));
}

TEST(MixedQuantile, OfOneSampleTwiceIsItsOwn) {
  const std::vector<QuantileSketch> samples = {normal_sample(3, 0.1), normal_sample(3, 0.1)};
  for (const double share : kShares) EXPECT_EQ(mixed_quantile(samples, share), samples[0].value_at(share));
}

// Samples of any kind: bounded, heavy-tailed, constant, of few values.
TEST(MixedQuantile, LiesBetweenTheSamplesOwnAndNearTheExactOne) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<QuantileSketch> sketches;
    std::vector<double> all;
    double low = INFINITY, high = -INFINITY;
    for (int s = 0; s < 3; ++s) {
      std::normal_distribution<double> normal(static_cast<double>(s) / 4, 1 + s);
      std::vector<double> sample(trial % 10 == 9 ? 3 : 2000);
      for (double& x : sample)
        x = trial % 4 == 0   ? std::round(normal(random))
            : trial % 4 == 1 ? std::pow(normal(random), 3)
            : trial % 4 == 2 ? 7.0
                             : normal(random);
      std::ranges::sort(sample);
      std::vector<double> values;
      for (const double share : kShares)
        values.push_back(sample[static_cast<std::size_t>(share * static_cast<double>(sample.size() - 1))]);
      low = std::min(low, values[4]), high = std::max(high, values[4]);
      sketches.emplace_back(sample.size() == 3 ? kKnownOfThree : kKnownOfMany, values);
      all.insert(all.end(), sample.begin(), sample.end());
    }
    std::ranges::sort(all);
    const double found = mixed_quantile(sketches, 0.995);
    EXPECT_LE(low, found);
    EXPECT_LE(found, high);
    if (trial % 4 != 3 || trial % 10 == 9) continue;
    const double exact = all[static_cast<std::size_t>(0.995 * static_cast<double>(all.size() - 1))];
    EXPECT_NEAR(found, exact, 0.15 * (high - low));
  }
}

TEST(MixedQuantile, TakesAValueForEachShare) {
  EXPECT_THROW(QuantileSketch(kKnown, {1, 2}), base::WrongUsage);
}

TEST(MixedQuantile, IsNotKnownOfEveryShare) {
  const std::vector<QuantileSketch> samples = {normal_sample(0, 1)};
  EXPECT_THROW((void)mixed_quantile(samples, 0.25), base::WrongUsage);
}

}  // namespace
}  // namespace kvcal::calib
