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

constexpr std::array kShares = {0.0, 0.005, 0.05, 0.95, 0.995, 1.0};
constexpr double kNumbers = 100000;

// Of a normal sample of so many numbers, as its quantiles are expected to lie.
QuantileSketch normal_sample(double mean, double deviation, double numbers = kNumbers) {
  // Standard normal quantiles (Abramowitz and Stegun 1964, table 26.5), the ends those of half a 100,000th.
  constexpr std::array kScores = {-4.4171734, -2.5758293, -1.6448536, 1.6448536, 2.5758293, 4.4171734};
  std::vector<KnownQuantile> known;
  for (std::size_t i = 0; i < kShares.size(); ++i)
    known.push_back({kShares[i], mean + deviation * kScores[i]});
  return {numbers, known};
}

TEST(MixedQuantile, OfNormalSamplesIsThatOfTheirMixture) {
  for (const double weight : {1.0, 3.0}) {
    const std::vector<QuantileSketch> samples = {normal_sample(0, 1),
                                                 normal_sample(0.5, 2, weight * kNumbers)};
    for (const double share : {0.005, 0.05, 0.95, 0.995}) {
      const double x = mixed_quantile(samples, share);
      const double below = (normal_share(x) + weight * normal_share((x - 0.5) / 2)) / (1 + weight);
      EXPECT_NEAR(below / share, 1, 1e-3) << "share " << share << ", weight " << weight;
    }
  }
}

// Without the ends, what is known goes on.
TEST(MixedQuantile, BeyondWhatIsKnownGoesOn) {
  const auto sample = [](double deviation) {
    const std::vector<KnownQuantile> known = {{0.005, -2.5758293 * deviation},
                                              {0.995, 2.5758293 * deviation}};
    return QuantileSketch(kNumbers, known);
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
      std::vector<KnownQuantile> known;
      for (const double share : kShares)
        known.push_back(
            {share, sample[static_cast<std::size_t>(share * static_cast<double>(sample.size() - 1))]});
      sketches.emplace_back(static_cast<double>(sample.size()), known);
      all.insert(all.end(), sample.begin(), sample.end());
      low = std::min(low, known[4].value), high = std::max(high, known[4].value);
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

TEST(MixedQuantile, IsNotKnownOfEveryShare) {
  const std::vector<QuantileSketch> samples = {normal_sample(0, 1)};
  EXPECT_THROW((void)mixed_quantile(samples, 0.25), base::WrongUsage);
}

}  // namespace
}  // namespace kvcal::calib
