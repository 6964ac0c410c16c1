// tests/kmeans/inputs.h: random inputs of many shapes, and sources of chunks.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kmeans/weighted_kmeans.h"

namespace kvcal::kmeans::testing {

template <typename Real>
struct Input {
  std::vector<Real> points;
  std::vector<Real> weights;
};

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  double uniform() { return std::uniform_real_distribution<double>()(engine_); }
  double normal() { return std::normal_distribution<double>()(engine_); }
  int below(int limit) { return static_cast<int>(engine_() % static_cast<std::uint64_t>(limit)); }

 private:
  std::mt19937_64 engine_;
};

inline constexpr int kPointShapes = 12;
inline constexpr int kWeightShapes = 10;

inline double random_point(Random& random, int shape, int index) {
  switch (shape) {
    case 0:
      return random.normal();
    case 1:
      return random.below(7);  // ties
    case 2:
      return std::exp(8 * random.normal());  // heavy tails
    case 3:
      return random.below(3) * 1000 + 1e-3 * random.normal();  // clusters within clusters
    case 4:
      return 1.7e12 + random.below(12);  // far from zero
    case 5:
      return random.uniform() < 0.05 ? 1e30 * random.normal() : random.normal();
    case 6:
      return 1e-42 * random.normal();  // denormal floats
    case 7:
      return index;  // many equal optima
    case 8:
      return 1e6 + random.normal();
    case 9:
      return (random.uniform() < 0.5 ? -1 : 1) * std::pow(10.0, -30 * random.uniform());  // at every scale
    case 10:
      return 0.125 * random.below(128) - 12;  // few digits: costs tie exactly, or to a rounding
    default:
      return random.uniform() < 0.5 ? 0.0 : random.normal();  // a spike
  }
}

inline double random_weight(Random& random, int shape) {
  switch (shape) {
    case 0:
      return 1;
    case 1:
      return random.uniform();
    case 2:
      return random.uniform() < 0.5 ? 0 : random.uniform();
    case 3:
      return std::pow(10.0, -20 * random.uniform());
    case 4:
      return 1e-30 * random.uniform();
    case 5:
      return 1e30 * random.uniform();
    case 6:
      return 1 + random.below(3);
    case 7:
      return std::pow(10.0, -40 * random.uniform());
    case 8:
      return random.uniform() < 0.5 ? 1 + random.below(4) : 1e-18 * (1 + random.below(4));
    default:
      return random.uniform() < 0.1 ? 0 : std::pow(10.0, 10 - 20 * random.uniform());
  }
}

/// At least one weight is above 0.
template <typename Real>
Input<Real> random_input(Random& random, int size, int point_shape, int weight_shape) {
  Input<Real> input;
  for (int i = 0; i < size; ++i) {
    input.points.push_back(static_cast<Real>(random_point(random, point_shape, i)));
    input.weights.push_back(static_cast<Real>(random_weight(random, weight_shape)));
  }
  input.weights[0] = static_cast<Real>(random_weight(random, 1) + 1e-9);
  return input;
}

/// An input in chunks of given sizes; the last chunk takes the rest.
class ChunkedSource final : public PointSource<float> {
 public:
  ChunkedSource(const Input<float>& input, std::vector<std::size_t> sizes) : input_(input) {
    begins_.push_back(0);
    for (const std::size_t size : sizes) begins_.push_back(begins_.back() + size);
    begins_.push_back(input.points.size());
  }
  [[nodiscard]] std::int64_t num_chunks() const override {
    return static_cast<std::int64_t>(begins_.size()) - 1;
  }
  void load(std::int64_t chunk, std::vector<float>& points, std::vector<float>& weights) const override {
    const auto begin = static_cast<std::ptrdiff_t>(begins_[static_cast<std::size_t>(chunk)]);
    const auto end = static_cast<std::ptrdiff_t>(begins_[static_cast<std::size_t>(chunk) + 1]);
    points.assign(input_.points.begin() + begin, input_.points.begin() + end);
    weights.assign(input_.weights.begin() + begin, input_.weights.begin() + end);
  }

 private:
  const Input<float>& input_;
  std::vector<std::size_t> begins_;
};

}  // namespace kvcal::kmeans::testing
