// The optimum is the optimum: against an independent solver in long double, on inputs of many shapes and
// sizes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kmeans/inputs.h"
#include "kmeans/reference.h"
#include "kmeans/weighted_kmeans.h"

namespace kvcal::kmeans {
namespace {

using testing::Input;
using testing::Quad;
using testing::Random;
using testing::Reference;

template <typename Real>
Solution solve_input(const Input<Real>& input, int k, int threads = 1, double gap = 0) {
  return solve(std::span<const Real>(input.points), std::span<const Real>(input.weights),
               {.clusters = k, .relative_gap = gap, .threads = threads});
}

// What docs/solver.md promises ("Rounding"): |objective - optimum|; lower_bound is at most twice as far away.
template <typename Wide, typename Real>
Wide promised_error(const Input<Real>& input, Wide optimum) {
  long double squares = 0;
  long double point = 0;
  long double weight = 0;
  for (std::size_t i = 0; i < input.points.size(); ++i) {
    const long double x = input.points[i];
    const long double w = input.weights[i];
    squares += w * x * x;
    if (w > 0) point = std::max(point, std::abs(x));
    weight = std::max(weight, w);
  }
  const long double root = std::sqrt(static_cast<long double>(optimum)) * std::sqrt(squares);
  const long double rest = 0x1p-98L * root + 0x1p-196L * squares + 0x1p-996L * weight * point * point;
  const long double relative = 0x1p-40L + 0x1p-64L * static_cast<long double>(input.points.size());
  return relative * optimum + rest;
}

template <typename Real>
void expect_optimal(const Solution& solution, const Input<Real>& input, int k) {
  const Reference reference = testing::reference_objective(input.points, input.weights, k);
  // The reference has rounding of its own, in units of the spread.
  const long double slack = promised_error(input, reference.objective) + 1e-15L * reference.spread;
  EXPECT_LE(solution.objective, reference.objective + slack);
  EXPECT_GE(solution.objective, reference.objective - slack);
  EXPECT_LE(solution.lower_bound, reference.objective + slack);
  EXPECT_LE(solution.lower_bound, solution.objective);
  EXPECT_GE(solution.lower_bound, reference.objective - 2 * slack);
  EXPECT_EQ(solution.centroids.size(), static_cast<std::size_t>(k));
  EXPECT_TRUE(std::is_sorted(solution.centroids.begin(), solution.centroids.end()));
}

template <typename Real>
void expect_small_inputs_optimal(std::uint64_t first_seed, int count) {
  for (std::uint64_t seed = first_seed; seed < first_seed + static_cast<std::uint64_t>(count); ++seed) {
    Random random(seed);
    const int size = 1 + random.below(seed % 16 == 0 ? 400 : 60);
    const int k = 1 + random.below(seed % 4 == 0 ? 24 : 8);
    const int points = random.below(testing::kPointShapes);
    const int weights = random.below(testing::kWeightShapes);
    SCOPED_TRACE(::testing::Message() << "seed " << seed << " size " << size << " k " << k << " points "
                                      << points << " weights " << weights);
    const Input<Real> input = testing::random_input<Real>(random, size, points, weights);
    expect_optimal(solve_input(input, k), input, k);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(Exactness, SmallFloatInputsOfManyShapes) {
  expect_small_inputs_optimal<float>(0, 4000);
}
TEST(Exactness, SmallDoubleInputsOfManyShapes) {
  expect_small_inputs_optimal<double>(100000, 4000);
}

::testing::AssertionResult keeps_the_promise(const Input<double>& input, int k) {
  const Solution solution = solve_input(input, k);
  const Quad optimum = testing::reference_objective<Quad>(input.points, input.weights, k).objective;
  const Quad error = promised_error(input, optimum);
  const bool kept = solution.objective <= optimum + error && solution.objective >= optimum - error &&
                    solution.lower_bound <= optimum && solution.lower_bound <= solution.objective &&
                    solution.lower_bound >= optimum - 2 * error;
  if (kept) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "objective " << solution.objective << " lower_bound " << solution.lower_bound << " optimum "
         << static_cast<double>(optimum) << " promised error " << static_cast<double>(error);
}

// Each of these once came out wrong, with a lower bound above the truth.
TEST(Exactness, ATieInRoundingHidesNoColumn) {
  const Input<double> input{{-11.75, -9.375, -2.25, 0}, {4, 3e-18, 2, 4}};
  EXPECT_TRUE(keeps_the_promise(input, 3));
  EXPECT_NEAR(solve_input(input, 3).objective, 1.70e-17, 1e-19);
}

TEST(Exactness, PointsCloserThanRoundingInUnitsOfTheSpread) {
  const Input<double> input{{0, 1e-20, 1}, {1, 1, 1}};
  EXPECT_TRUE(keeps_the_promise(input, 2));
  EXPECT_NEAR(solve_input(input, 2).objective, 5e-41, 1e-52);
}

TEST(Exactness, MillionsOfEqualWeightsDoNotDrift) {
  Input<double> input;
  constexpr int kPoints = 4000000;
  for (int i = 0; i < kPoints; ++i) {
    input.points.push_back(i % 2);
    input.weights.push_back(0.1);
  }
  // Half the weight at each of two points a distance of 1 apart: W/4.
  const auto optimum = static_cast<Quad>(0.1) * kPoints / 4;
  const Quad error = promised_error(input, optimum);
  const Solution solution = solve_input(input, 1, 2);
  EXPECT_TRUE(solution.objective <= optimum + error && solution.objective >= optimum - error)
      << solution.objective;
  EXPECT_TRUE(solution.lower_bound <= optimum && solution.lower_bound >= optimum - 2 * error)
      << solution.lower_bound;
}

TEST(Exactness, AMillionSmallInputsKeepThePromisedBound) {
#if defined(__SANITIZE_ADDRESS__)
  constexpr std::uint64_t kInputs = 20000;
#else
  constexpr std::uint64_t kInputs = 1000000;
#endif
  for (std::uint64_t seed = 0; seed < kInputs; ++seed) {
    Random random(seed);
    const int size = 1 + random.below(seed % 32 == 0 ? 16 : 6);
    const int k = 1 + random.below(4);
    const int points = random.below(testing::kPointShapes);
    const int weights = random.below(testing::kWeightShapes);
    const Input<double> input = testing::random_input<double>(random, size, points, weights);
    ASSERT_TRUE(keeps_the_promise(input, k)) << "seed " << seed << " size " << size << " k " << k
                                             << " points " << points << " weights " << weights;
  }
}

// Each point many times over, its weight split: the optimum is that of the few, and the input large enough
// for the histogram.
template <typename Real>
void expect_repeated_inputs_optimal(std::uint64_t first_seed) {
  constexpr int kCopies = 128;
  for (std::uint64_t seed = first_seed; seed < first_seed + 40; ++seed) {
    Random random(seed);
    const int points = static_cast<int>(seed) % testing::kPointShapes;
    const int weights = random.below(testing::kWeightShapes);
    const int k = 1 + random.below(12);
    SCOPED_TRACE(::testing::Message()
                 << "seed " << seed << " k " << k << " points " << points << " weights " << weights);
    const Input<Real> few = testing::random_input<Real>(random, 300, points, weights);
    Input<Real> many;
    for (int copy = 0; copy < kCopies; ++copy) {
      many.points.insert(many.points.end(), few.points.begin(), few.points.end());
      for (const Real weight : few.weights) many.weights.push_back(weight / kCopies);
    }
    expect_optimal(solve_input(many, k), few, k);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(Exactness, RepeatedFloatPoints) {
  expect_repeated_inputs_optimal<float>(0);
}
TEST(Exactness, RepeatedDoublePoints) {
  expect_repeated_inputs_optimal<double>(1000);
}

// Plain divide and conquer over sorted points with prefix sums in long double: good for points of one size
// near zero.
long double sorted_objective(const Input<float>& input, int k) {
  const std::size_t n = input.points.size();
  std::vector<std::size_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return input.points[a] < input.points[b]; });
  std::vector<long double> w(n + 1, 0), s(n + 1, 0), q(n + 1, 0);
  for (std::size_t i = 0; i < n; ++i) {
    const long double x = input.points[order[i]];
    const long double weight = input.weights[order[i]];
    w[i + 1] = w[i] + weight;
    s[i + 1] = s[i] + weight * x;
    q[i + 1] = q[i] + weight * x * x;
  }
  const auto cost = [&](std::size_t i, std::size_t j) {
    return i == j ? 0.0L : q[j] - q[i] - (s[j] - s[i]) * (s[j] - s[i]) / (w[j] - w[i]);
  };
  std::vector<long double> last(n + 1, 1e300L), next(n + 1);
  last[0] = 0;
  const auto layer = [&](auto&& self, std::size_t lo, std::size_t hi, std::size_t from,
                         std::size_t to) -> void {
    if (lo > hi) return;
    const std::size_t middle = (lo + hi) / 2;
    std::size_t best = from;
    next[middle] = 1e300L;
    for (std::size_t i = from; i <= std::min(to, middle); ++i) {
      const long double value = last[i] + cost(i, middle);
      if (value < next[middle]) next[middle] = value, best = i;
    }
    if (middle > lo) self(self, lo, middle - 1, from, best);
    self(self, middle + 1, hi, best, to);
  };
  for (int j = 0; j < k; ++j) {
    layer(layer, 0, n, 0, n);
    last = next;
  }
  return last[n];
}

TEST(Exactness, HistogramAndCertificateOnLargerInputs) {
  for (int shape = 0; shape < 4; ++shape) {
    Random random(static_cast<std::uint64_t>(shape));
    Input<float> input;
    for (int i = 0; i < 40000; ++i) {
      const double normal = random.normal();
      const double tail = normal / std::sqrt(0.05 + random.uniform());
      input.points.push_back(static_cast<float>(shape == 0 ? normal : shape == 1 ? random.uniform() : tail));
      input.weights.push_back(shape == 3 ? 1.0F : static_cast<float>(std::exp(2 * random.normal())));
    }
    for (const int k : {1, 2, 3, 8, 16, 40}) {
      const Solution solution = solve_input(input, k, 2);
      const auto expected = static_cast<double>(sorted_objective(input, k));
      EXPECT_NEAR(solution.objective, expected, 1e-12 * expected) << "shape " << shape << " k " << k;
      EXPECT_GE(solution.lower_bound, solution.objective * (1 - 2e-12));
    }
  }
}

TEST(Exactness, GapHoldsTheOptimumAndIsKept) {
  Random random(5);
  const Input<float> input = [&] {
    Input<float> made;
    for (int i = 0; i < 300000; ++i) {
      made.points.push_back(static_cast<float>(random.normal()));
      made.weights.push_back(static_cast<float>(std::exp(random.normal())));
    }
    return made;
  }();
  for (const int k : {4, 16}) {
    const double optimum = solve_input(input, k, 2).objective;
    for (const double gap : {1e-1, 1e-3, 2e-6, 1e-9}) {
      const Solution solution = solve_input(input, k, 2, gap);
      EXPECT_GE(solution.objective, optimum * (1 - 1e-12));
      EXPECT_LE(solution.lower_bound, optimum * (1 + 1e-12));
      EXPECT_LE(solution.objective, solution.lower_bound * (1 + gap) * (1 + 1e-12))
          << "k " << k << " gap " << gap;
    }
  }
}

// The least distortions of a unit Gaussian; those of n points tend to them from below, k / n or so off.
TEST(Exactness, GaussianMinimaAreApproached) {
  const std::vector<int> clusters{4, 8, 16, 32};
  const std::vector<double> minima{0.117481848, 0.034547761, 0.009501008, 0.002504668};
  // Points at the quantiles, so that there is no sampling noise.
  Input<double> input;
  constexpr int kPoints = 400000;
  double x = 0;
  for (int i = kPoints / 2; i < kPoints; ++i) {
    const double p = (i + 0.5) / kPoints;
    for (int newton = 0; newton < 8;
         ++newton) {  // from the last quantile, a short way off, convex: converges
      const double density = std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0));
      x += (1 - std::erfc(x / std::sqrt(2.0)) / 2 <= p ? 1 : -1) *
           std::abs(p - (1 - std::erfc(x / std::sqrt(2.0)) / 2)) / density;
    }
    for (const double sign : {-1.0, 1.0}) {
      input.points.push_back(sign * x);
      input.weights.push_back(1.0 / kPoints);
    }
  }
  for (std::size_t i = 0; i < clusters.size(); ++i) {
    const Solution solution = solve_input(input, clusters[i], 2);
    EXPECT_NEAR(solution.objective, minima[i], 2e-3 * minima[i]) << "k " << clusters[i];
    // The optimal codebook of a symmetric density is symmetric.
    EXPECT_NEAR(solution.centroids.front(), -solution.centroids.back(), 1e-3);
  }
}

}  // namespace
}  // namespace kvcal::kmeans
