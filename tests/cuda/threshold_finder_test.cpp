#include "cuda/threshold_finder.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "cuda/vector_codec.h"

namespace kvcal::codec {
namespace {

TEST(ThresholdFinder, FindsTheQuantiles) {
  std::mt19937 generator(1);
  std::student_t_distribution<float> heavy(3);
  for (const std::size_t count : {1U, 2U, 3U, 7U, 64U, 192U, 1000U, 4096U}) {
    for (const double fraction : {0.0, 0.001, 0.01, 0.02, 0.1, 0.3, 0.499}) {
      ThresholdFinder finder(count, fraction);
      for (int repeat = 0; repeat < 5; ++repeat) {
        std::vector<float> x(count);
        for (float& value : x) value = repeat == 4 ? 2.5F : heavy(generator);
        const ThresholdPair pair = finder.find(x);
        EXPECT_EQ(pair.lower, quantile(x, fraction / 2)) << count << ", " << fraction;
        EXPECT_EQ(pair.upper, quantile(x, 1 - fraction / 2)) << count << ", " << fraction;
      }
    }
  }
}

TEST(ThresholdFinder, RefusesWhatIsNoFractionAndNoVector) {
  EXPECT_THROW(ThresholdFinder(0, 0), base::WrongUsage);
  EXPECT_THROW(ThresholdFinder(4, 0.5), base::WrongUsage);
  EXPECT_THROW(ThresholdFinder(4, -0.1), base::WrongUsage);
  EXPECT_THROW((void)ThresholdFinder(4, 0).find(std::vector<float>(3)), base::InvalidInput);
}

}  // namespace
}  // namespace kvcal::codec
