// What solve() and solve_all() promise beside the optimum: order, independence of threads and chunks,
// degenerate inputs, errors.
#include "kmeans/weighted_kmeans.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"
#include "kmeans/inputs.h"

namespace kvcal::kmeans {
namespace {

using testing::ChunkedSource;
using testing::Input;
using testing::Random;

Solution solve_floats(const std::vector<float>& points, const std::vector<float>& weights, int k,
                      int threads = 1) {
  return solve(std::span<const float>(points), std::span<const float>(weights),
               {.clusters = k, .threads = threads});
}

Solution solve_doubles(const std::vector<double>& points, const std::vector<double>& weights, int k) {
  return solve(std::span<const double>(points), std::span<const double>(weights),
               {.clusters = k, .threads = 1});
}

Input<float> heavy_tailed(int size) {
  Random random(7);
  Input<float> input;
  for (int i = 0; i < size; ++i) {
    input.points.push_back(static_cast<float>(random.normal() / std::sqrt(0.05 + random.uniform())));
    input.weights.push_back(i % 11 == 0 ? 0.0F : static_cast<float>(std::exp(2 * random.normal())));
  }
  return input;
}

void expect_same_bits(const Solution& a, const Solution& b) {
  EXPECT_EQ(a.centroids, b.centroids);
  EXPECT_EQ(a.objective, b.objective);
  EXPECT_EQ(a.lower_bound, b.lower_bound);
}

template <typename Exception>
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing thrown";
  return {};
}

TEST(WeightedKmeans, SolvesByHand) {
  // {0, 1 (weight 3)} and {10}: mean 0.75, cost 3/4.
  const Solution solution = solve_floats({10, 0, 1}, {5, 1, 3}, 2);
  EXPECT_EQ(solution.centroids, (std::vector<double>{0.75, 10}));
  EXPECT_DOUBLE_EQ(solution.objective, 0.75);
}

TEST(WeightedKmeans, SameBitsForAnyNumberOfThreads) {
  const Input<float> input = heavy_tailed(500000);
  for (const int k : {4, 16}) {
    const Solution one = solve_floats(input.points, input.weights, k, 1);
    expect_same_bits(one, solve_floats(input.points, input.weights, k, 2));
    expect_same_bits(one, solve_floats(input.points, input.weights, k, 5));
  }
  const std::vector<int> clusters{4, 8, 16};
  const ChunkedSource source(input, {1000, 0, 200000, 1, 70000, 70000});
  const std::vector<Solution> one = solve_all(source, clusters, 0, 1);
  for (const int threads : {2, 5}) {
    const std::vector<Solution> more = solve_all(source, clusters, 0, threads);
    for (std::size_t i = 0; i < clusters.size(); ++i) expect_same_bits(one[i], more[i]);
  }
}

TEST(WeightedKmeans, ObjectiveIsThatOfTheCentroids) {
  const Input<float> input = heavy_tailed(200000);
  const Solution solution = solve_floats(input.points, input.weights, 8);
  long double objective = 0;
  for (std::size_t i = 0; i < input.points.size(); ++i) {
    long double nearest = std::numeric_limits<long double>::infinity();
    for (const double centroid : solution.centroids) {
      const long double distance = input.points[i] - static_cast<long double>(centroid);
      nearest = std::min(nearest, distance * distance);
    }
    objective += input.weights[i] * nearest;
  }
  EXPECT_NEAR(solution.objective, static_cast<double>(objective), 1e-12 * solution.objective);
}

TEST(WeightedKmeans, ManyClusterNumbersAtOnceAndInChunks) {
  const Input<float> input = heavy_tailed(100000);
  const std::vector<int> clusters{16, 2, 4, 256, 4};
  const ChunkedSource source(input, {0, 5, 30000, 0, 1});
  const std::vector<Solution> together = solve_all(source, clusters, 0, 2);
  ASSERT_EQ(together.size(), clusters.size());
  for (std::size_t i = 0; i < clusters.size(); ++i) {
    const Solution alone = solve_floats(input.points, input.weights, clusters[i], 2);
    EXPECT_EQ(together[i].centroids.size(), static_cast<std::size_t>(clusters[i]));
    EXPECT_NEAR(together[i].objective, alone.objective, 1e-12 * alone.objective);
  }
  EXPECT_TRUE(solve_all(source, {}, 0, 1).empty());
}

TEST(WeightedKmeans, WeightZeroDoesNotCount) {
  const Solution solution = solve_floats({-1000, 1, 2, 1e30F, 3}, {0, 1, 1, 0, 1}, 3);
  EXPECT_EQ(solution.centroids, (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(solution.objective, 0);
}

TEST(WeightedKmeans, FewerDistinctPointsThanClustersRepeatsTheLast) {
  EXPECT_EQ(solve_floats({2, 0.3F, 2, 2}, {1, 1, 0, 5}, 4).centroids, (std::vector<double>{0.3F, 2, 2, 2}));
  EXPECT_EQ(solve_floats({-0.0F, 0.0F}, {1, 1}, 2).centroids, (std::vector<double>{0, 0}));
  EXPECT_EQ(solve_floats({7}, {1e-38F}, 1).centroids, (std::vector<double>{7}));
  // The same where a histogram is made.
  Input<float> many;
  for (int i = 0; i < 100000; ++i) {
    many.points.push_back(i % 3 == 0 ? -1.5F : i % 3 == 1 ? 0.1F : 1e20F);
    many.weights.push_back(0.1F * static_cast<float>(1 + i % 5));
  }
  const Solution solution = solve_floats(many.points, many.weights, 5);
  ASSERT_EQ(solution.centroids.size(), 5U);
  EXPECT_EQ(solution.centroids[4], 1e20F);
  EXPECT_EQ(solution.centroids[2], solution.centroids[4]);
  EXPECT_EQ(solution.objective, 0);
  EXPECT_EQ(solution.lower_bound, 0);
}

TEST(WeightedKmeans, AsManyClustersAsDistinctPointsCostNothing) {
  std::vector<float> points;
  for (int i = 0; i < 100000; ++i) points.push_back(0.37F * static_cast<float>(i % 200) - 11.0F);
  const std::vector<float> weights(points.size(), 0.3F);
  EXPECT_EQ(solve_floats(points, weights, 200).objective, 0);
  EXPECT_EQ(solve_floats(points, weights, 256).objective, 0);
}

TEST(WeightedKmeans, PointsFarFromZero) {
  std::vector<double> points;
  for (int i = 0; i < 12; ++i) points.push_back(1.7e12 + i);
  const Solution solution = solve_doubles(points, std::vector<double>(12, 1.0), 4);
  EXPECT_EQ(solution.centroids, (std::vector<double>{1.7e12 + 1, 1.7e12 + 4, 1.7e12 + 7, 1.7e12 + 10}));
  EXPECT_DOUBLE_EQ(solution.objective, 8);
}

TEST(WeightedKmeans, ScalesOfPointsAndWeightsDoNotMatter) {
  const Input<float> input = heavy_tailed(30000);
  const Solution plain = solve_floats(input.points, input.weights, 6);
  for (const int exponent : {-100, 100}) {
    Input<float> scaled = input;
    for (float& weight : scaled.weights) weight = std::ldexp(weight, exponent);
    const Solution solution = solve_floats(scaled.points, scaled.weights, 6);
    EXPECT_EQ(solution.centroids, plain.centroids);
    EXPECT_EQ(solution.objective, std::ldexp(plain.objective, exponent));
  }
  Input<double> wide;
  for (std::size_t i = 0; i < input.points.size(); ++i) {
    wide.points.push_back(std::ldexp(double{input.points[i]}, 1000));
    wide.weights.push_back(double{input.weights[i]});
  }
  const Solution solution = solve_doubles(wide.points, wide.weights, 6);
  EXPECT_TRUE(std::isinf(solution.objective));
  EXPECT_NEAR(std::ldexp(solution.centroids[3], -1000), plain.centroids[3], 1e-9);
}

TEST(WeightedKmeans, DenormalAndHugeValues) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(solve_floats({tiny, 5 * tiny, 6 * tiny}, {tiny, tiny, tiny}, 2).centroids,
            (std::vector<double>{double{tiny}, 5.5 * double{tiny}}));
  const float huge = std::numeric_limits<float>::max();
  EXPECT_EQ(solve_floats({-huge, huge, huge}, {huge, huge, huge}, 2).centroids,
            (std::vector<double>{-double{huge}, double{huge}}));
  const double largest = std::numeric_limits<double>::max();
  const Solution solution = solve_doubles({-largest, largest}, {largest, 1}, 1);
  EXPECT_TRUE(std::isfinite(solution.centroids[0]));
}

TEST(WeightedKmeans, RefusesWhatIsNotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> points(200000, 1.0F);
  std::vector<float> weights(200000, 1.0F);
  points[150001] = nan;
  weights[150002] = -1;
  const auto call = [&] { (void)solve_floats(points, weights, 4, 2); };
  EXPECT_NE(message_of<base::InvalidInput>(call).find("point at index 150001 is"), std::string::npos);
  weights[99999] = inf;
  EXPECT_NE(message_of<base::InvalidInput>(call).find("weight at index 99999 is inf"), std::string::npos);
  weights[70] = -2;
  EXPECT_NE(message_of<base::InvalidInput>(call).find("weight at index 70 is -2"), std::string::npos);
  weights[69] = 0;
  points[69] = -inf;  // refused though its weight is zero
  EXPECT_NE(message_of<base::InvalidInput>(call).find("point at index 69 is -inf"), std::string::npos);
}

TEST(WeightedKmeans, CountsIndicesOverChunks) {
  Input<float> input = heavy_tailed(1000);
  input.weights[777] = -1;
  const ChunkedSource source(input, {100, 0, 300});
  const std::vector<int> clusters{2};
  const auto call = [&] { (void)solve_all(source, clusters, 0, 2); };
  EXPECT_NE(message_of<base::InvalidInput>(call).find("index 777 "), std::string::npos);
}

TEST(WeightedKmeans, RefusesNoPointsAndNoWeight) {
  EXPECT_NE(message_of<base::InvalidInput>([] { (void)solve_floats({}, {}, 4); }).find("no points"),
            std::string::npos);
  EXPECT_NE(message_of<base::InvalidInput>([] {
              (void)solve_floats({1, 2}, {0, 0}, 4);
            }).find("all 2 weights are zero"),
            std::string::npos);
  const Input<float> empty;
  const ChunkedSource source(empty, {0, 0});
  EXPECT_THROW((void)solve_all(source, std::vector<int>{2}, 0, 1), base::InvalidInput);
}

TEST(WeightedKmeans, RefusesWrongOptions) {
  EXPECT_THROW((void)solve_floats({1, 2}, {1}, 2), base::WrongUsage);
  for (const int k : {0, -1, 257}) EXPECT_THROW((void)solve_floats({1}, {1}, k), base::WrongUsage);
  const std::vector<float> one{1};
  for (const double gap :
       {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    EXPECT_THROW((void)solve(std::span<const float>(one), std::span<const float>(one),
                             {.clusters = 1, .relative_gap = gap}),
                 base::WrongUsage);
  }
}

TEST(WeightedKmeans, PassesOnWhatASourceThrows) {
  class Failing final : public PointSource<float> {
   public:
    [[nodiscard]] std::int64_t num_chunks() const override { return 40; }
    void load(std::int64_t chunk, std::vector<float>& points, std::vector<float>& weights) const override {
      if (chunk == 23) throw std::domain_error("broken disk");
      points.assign(chunk == 30 ? 2 : 1, 1.0F);
      weights.assign(1, 1.0F);
    }
  };
  // On one thread the stripe of chunk 23 comes first; on several either error may.
  EXPECT_THROW((void)solve_all(Failing(), std::vector<int>{2}, 0, 1), std::domain_error);
}

}  // namespace
}  // namespace kvcal::kmeans
