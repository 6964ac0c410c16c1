#include "calib/fit/range_fit.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "base/parallel.h"
#include "kmeans/weighted_kmeans.h"

namespace kvcal::calib {
namespace {

constexpr std::size_t kParts = 512;
constexpr int kMostTurns = 200;
constexpr double kLeastGain = 1e-5;
// Channels whose sums are added up before those of others.
constexpr std::int64_t kChannelsAtOnce = 8;

std::size_t part_of(double point) {
  constexpr double kLast = kParts - 1;
  return static_cast<std::size_t>(std::clamp((point + 1) * (kParts / 2.0), 0.0, kLast));
}

}  // namespace

/// What a turn adds up over the channels: the normal equations of each level, and the error that the turn began with.
struct RangeFit::Turn {
  std::vector<double> moments, weights;  // [levels]
  double error = 0;
  Turn& operator+=(const Turn& other) {
    moments.resize(other.moments.size());
    weights.resize(other.weights.size());
    for (std::size_t i = 0; i < moments.size(); ++i) {
      moments[i] += other.moments[i];
      weights[i] += other.weights[i];
    }
    error += other.error;
    return *this;
  }
};

RangeFit::RangeFit(const CapturedTokens& tokens, const Thresholds& thresholds, Weighting weighting,
                   int threads)
    : normalisers_(thresholds.lower.size()),
      parts_(thresholds.lower.size() * kParts),
      squares_(thresholds.lower.size()),
      costs_(thresholds.lower.size()) {
  const bool with_gradients = tokens.has_gradients() && weighting != Weighting::kUnit;
  base::parallel_for(tokens.channels(), threads, [&](std::int64_t c) {
    const auto channel = static_cast<std::size_t>(c);
    const float lower = thresholds.lower[channel], upper = thresholds.upper[channel];
    const Normaliser normal = normaliser(lower, upper);
    normalisers_[channel] = normal;
    if (normal.range == 0) return;
    costs_[channel] = weighting == Weighting::kRange ? normal.range * normal.range : 1;
    std::vector<float> x(static_cast<std::size_t>(tokens.tokens()));
    std::vector<float> gradients(with_gradients ? x.size() : 0);
    tokens.read_x({0, tokens.tokens()}, {c, c + 1}, x);
    if (with_gradients) tokens.read_gradients({0, tokens.tokens()}, {c, c + 1}, gradients);
    const std::span<WeightSum> parts = std::span(parts_).subspan(channel * kParts, kParts);
    for (std::size_t t = 0; t < x.size(); ++t) {
      if (x[t] < lower || x[t] > upper) continue;
      const double point = (double{x[t]} - normal.zero) / normal.range;
      const double weight = with_gradients ? double{gradients[t]} * double{gradients[t]} : 1;
      WeightSum& part = parts[part_of(point)];
      part.weight += weight;
      part.moment += weight * point;
      squares_[channel] += weight * point * point;
    }
  });
}

RangeFit::Start RangeFit::start(int levels, int threads) const {
  std::vector<double> points, weights;
  double scatter = 0;  // within parts
  for (std::size_t channel = 0; channel < normalisers_.size(); ++channel) {
    if (costs_[channel] == 0) continue;
    double squares = 0;
    for (std::size_t i = 0; i < kParts; ++i) {
      const WeightSum& part = parts_[channel * kParts + i];
      if (!(part.weight > 0)) continue;
      points.push_back(part.moment / part.weight);
      weights.push_back(costs_[channel] * part.weight);
      squares += part.moment / part.weight * part.moment;
    }
    scatter += costs_[channel] * std::max(0.0, squares_[channel] - squares);
  }
  kmeans::Solution solution =
      kmeans::solve(std::span<const double>(points), weights, {.clusters = levels, .threads = threads});
  return {std::move(solution.centroids), solution.objective + scatter};
}

std::vector<WeightSum> RangeFit::by_level(std::size_t channel, const std::vector<double>& levels,
                                          const Placing& placing) const {
  std::vector<WeightSum> sums(levels.size());
  std::size_t level = 0;
  for (std::size_t i = 0; i < kParts; ++i) {
    const WeightSum& part = parts_[channel * kParts + i];
    if (!(part.weight > 0)) continue;
    const double point = (part.moment / part.weight - placing.zero) / placing.scale;
    while (level + 1 < levels.size() && 2 * point > levels[level] + levels[level + 1]) ++level;
    sums[level].weight += part.weight;
    sums[level].moment += part.moment;
  }
  return sums;
}

void RangeFit::turn(std::size_t channel, const std::vector<double>& levels, Placing& placing,
                    Turn& sums) const {
  if (costs_[channel] == 0) return;
  const std::vector<WeightSum> parts = by_level(channel, levels, placing);
  double error = squares_[channel];
  for (std::size_t i = 0; i < levels.size(); ++i) {
    const double place = placing.scale * levels[i] + placing.zero;
    error += place * (place * parts[i].weight - 2 * parts[i].moment);
  }
  sums.error += costs_[channel] * error;
  if (const auto found = least_squares_range(levels, parts)) placing = {found->range, found->zero};
  for (std::size_t i = 0; i < levels.size(); ++i) {
    const double cost = costs_[channel] * placing.scale;
    sums.moments[i] += cost * (parts[i].moment - placing.zero * parts[i].weight);
    sums.weights[i] += cost * placing.scale * parts[i].weight;
  }
}

std::vector<Normaliser> RangeFit::fit(std::vector<double> levels, int threads) const {
  const auto channels = static_cast<std::int64_t>(normalisers_.size());
  std::vector<Placing> placings(normalisers_.size());
  double before = 0;
  for (int turns = 0; turns < kMostTurns; ++turns) {
    const Turn sums = base::blocked_sum<Turn>(
        channels, kChannelsAtOnce, threads, [&](std::int64_t begin, std::int64_t end) {
          Turn some{std::vector<double>(levels.size()), std::vector<double>(levels.size())};
          for (std::int64_t c = begin; c < end; ++c)
            turn(static_cast<std::size_t>(c), levels, placings[static_cast<std::size_t>(c)], some);
          return some;
        });
    for (std::size_t i = 0; i < levels.size(); ++i) {
      if (sums.weights[i] > 0) levels[i] = sums.moments[i] / sums.weights[i];
    }
    std::ranges::sort(levels);
    if (turns > 0 && !(sums.error < before * (1 - kLeastGain))) break;
    before = sums.error;
  }
  std::vector<Normaliser> fitted = normalisers_;
  for (std::size_t c = 0; c < fitted.size(); ++c) {
    fitted[c].zero += fitted[c].range * placings[c].zero;
    fitted[c].range *= placings[c].scale;
  }
  return fitted;
}

}  // namespace kvcal::calib
