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
using testing::Random;
using testing::Reference;

template <typename Real>
Solution solve_input(const Input<Real>& input, int k, int threads = 1, double gap = 0) {
  return solve(std::span<const Real>(input.points), std::span<const Real>(input.weights),
               {.clusters = k, .relative_gap = gap, .threads = threads});
}

void expect_optimal(const Solution& solution, const Reference& reference, int k) {
  const long double slack = 1e-12L * reference.objective + 1e-15L * reference.spread;
  EXPECT_LE(solution.objective, reference.objective + slack);
  EXPECT_GE(solution.objective, reference.objective - slack);
  EXPECT_LE(solution.lower_bound, reference.objective + slack);
  EXPECT_LE(solution.lower_bound, solution.objective);
  EXPECT_GE(solution.lower_bound,
            solution.objective * (1 - 1e-12) - static_cast<double>(1e-15L * reference.spread));
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
    expect_optimal(solve_input(input, k), testing::reference_objective(input.points, input.weights, k), k);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(Exactness, SmallFloatInputsOfManyShapes) {
  expect_small_inputs_optimal<float>(0, 4000);
}
TEST(Exactness, SmallDoubleInputsOfManyShapes) {
  expect_small_inputs_optimal<double>(100000, 4000);
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
    expect_optimal(solve_input(many, k), testing::reference_objective(few.points, few.weights, k), k);
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
