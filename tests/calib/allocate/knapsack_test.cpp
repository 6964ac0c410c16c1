#include "calib/allocate/knapsack.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "base/error.h"

namespace kvcal::calib {
namespace {

struct Sum {
  std::int64_t bytes = 0;
  double cost = 0;
};

Sum sum_of(const KnapsackItems& items, const std::vector<std::size_t>& options) {
  Sum sum;
  for (std::size_t i = 0; i < items.size(); ++i) {
    sum.bytes += items[i][options[i]].bytes;
    sum.cost += items[i][options[i]].cost;
  }
  return sum;
}

// Every choice there is; the least cost within the budget, of equal ones the fewest bytes.
Sum try_all(const KnapsackItems& items, std::int64_t budget) {
  Sum best{0, std::numeric_limits<double>::infinity()};
  std::vector<std::size_t> options(items.size());
  for (;;) {
    const Sum sum = sum_of(items, options);
    if (sum.bytes <= budget && (sum.cost < best.cost || (sum.cost == best.cost && sum.bytes < best.bytes)))
      best = sum;
    std::size_t i = 0;
    while (i < items.size() && ++options[i] == items[i].size()) options[i++] = 0;
    if (i == items.size()) return best;
  }
}

KnapsackItems random_items(std::mt19937& random, std::size_t count, std::size_t most_options,
                           int most_bytes) {
  std::uniform_int_distribution<int> bytes(0, most_bytes);
  // Whole numbers: sums are the same in any order.
  std::uniform_int_distribution<int> cost(0, 1000);
  KnapsackItems items(count);
  for (std::vector<KnapsackOption>& options : items) {
    options.resize(1 + random() % most_options);
    for (KnapsackOption& option : options) option = {bytes(random), static_cast<double>(cost(random))};
  }
  return items;
}

TEST(Knapsack, EqualsBruteForceAtEveryBudget) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 300; ++trial) {
    const KnapsackItems items = random_items(random, 1 + random() % 6, 4, trial % 2 == 0 ? 5 : 1000);
    const std::int64_t least = smallest_bytes(items);
    for (std::int64_t budget = least; budget < least + 2000;
         budget += 1 + static_cast<std::int64_t>(random() % 97)) {
      const Sum expected = try_all(items, budget);
      const KnapsackChoice choice = choose_options(items, budget);
      ASSERT_EQ(choice.cost, expected.cost) << "trial " << trial << ", budget " << budget;
      ASSERT_EQ(choice.bytes, expected.bytes) << "trial " << trial << ", budget " << budget;
      EXPECT_EQ(choice.lower_bound, choice.cost);
      const Sum sum = sum_of(items, choice.options);
      EXPECT_EQ(sum.bytes, choice.bytes);
      EXPECT_EQ(sum.cost, choice.cost);
    }
  }
}

// As large models have them: 80 layers, keys and values, nine datatypes each of nearly the same bytes.
KnapsackItems layers(std::size_t count) {
  std::mt19937 random(2);
  std::lognormal_distribution<double> scale(0, 1.5);
  KnapsackItems items(count);
  for (std::size_t i = 0; i < count; ++i) {
    const double weight = scale(random);
    for (int bits = 2; bits <= 4; ++bits) {
      for (const int outliers : {0, 5, 10}) {
        const auto bytes =
            std::int64_t{131072} * 1024 * (1000 * bits + 48 * outliers + (i % 2 == 0 ? 0 : 31)) / 8000;
        items[i].push_back(
            {bytes, weight * std::exp2(-2.0 * bits) / (1 + 0.07 * outliers) * (1 + 0.1 * scale(random))});
      }
    }
  }
  return items;
}

TEST(Knapsack, SolvesALargeModelToItsOptimum) {
  const KnapsackItems items = layers(160);
  const std::int64_t least = smallest_bytes(items);
  for (const double more : {0.0, 0.01, 0.2, 0.37, 0.5, 0.8, 1.2}) {
    const auto budget = static_cast<std::int64_t>(static_cast<double>(least) * (1 + more));
    const KnapsackChoice choice = choose_options(items, budget);
    EXPECT_LE(choice.bytes, budget);
    EXPECT_EQ(choice.lower_bound, choice.cost) << more;
  }
}

TEST(Knapsack, WithoutRoomSaysHowFarItMayBeFromTheOptimum) {
  const KnapsackItems items = layers(40);
  const auto budget = static_cast<std::int64_t>(1.37 * static_cast<double>(smallest_bytes(items)));
  const KnapsackChoice best = choose_options(items, budget);
  const KnapsackChoice near = choose_options(items, budget, 2 * items.size());
  EXPECT_LE(near.bytes, budget);
  EXPECT_GE(near.cost, best.cost);
  EXPECT_LE(near.lower_bound, best.cost);
  EXPECT_GT(near.lower_bound, 0.9 * best.cost);
}

TEST(Knapsack, TheCurveGivesWhatTheSolverFindsAtItsOwnBytes) {
  const KnapsackItems items = layers(20);
  const std::vector<KnapsackPoint> curve = knapsack_curve(items);
  ASSERT_GT(curve.size(), 20U);
  EXPECT_EQ(curve.front().bytes, smallest_bytes(items));
  for (const KnapsackPoint& point : curve)
    EXPECT_NEAR(choose_options(items, point.bytes).cost, point.cost, 1e-9 * curve.front().cost);
}

TEST(Knapsack, ABudgetBelowTheSmallestChoiceIsRefusedWithItsSize) {
  const KnapsackItems items = {{{10, 1}, {20, 0}}, {{7, 1}}};
  EXPECT_EQ(choose_options(items, 17).cost, 2);
  try {
    (void)choose_options(items, 16);
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("17"), std::string::npos) << error.what();
  }
}

TEST(Knapsack, SumsThatOverflowAreRefused) {
  const std::int64_t half = std::numeric_limits<std::int64_t>::max() / 2 + 1;
  EXPECT_THROW((void)smallest_bytes({{{half, 0}}, {{half, 0}}}), base::InvalidInput);
}

TEST(Knapsack, NothingToChooseCostsNothing) {
  EXPECT_EQ(choose_options({}, 0).cost, 0);
  EXPECT_EQ(choose_options({{{5, 3}}}, 5).options, std::vector<std::size_t>{0});
}

}  // namespace
}  // namespace kvcal::calib
