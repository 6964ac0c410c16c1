#include "calib/merge/mixed_levels.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "calib/fit/weight_sum.h"

namespace kvcal::calib {
namespace {

constexpr int kMostTurns = 200;
constexpr double kLeastGain = 1e-5;

double square(double x) {
  return x * x;
}

// Which of ascending levels lies nearest.
std::size_t nearest_to(double x, std::span<const double> levels) {
  const auto distance = [x](double level) { return std::abs(level - x); };
  return static_cast<std::size_t>(std::ranges::min_element(levels, {}, distance) - levels.begin());
}

class Mixing {
 public:
  Mixing(std::span<const RunLevels> runs, std::vector<Normaliser> ranges, std::vector<double> levels,
         bool fits_ranges)
      : runs_(runs),
        fits_ranges_(fits_ranges),
        mixed_{std::move(levels), std::move(ranges), 0},
        sums_(mixed_.ranges.size() * mixed_.levels.size()),
        squares_(mixed_.ranges.size()) {}

  MixedLevels fit() {
    keep_codes();
    repeat([&] { return distance(); });
    const double left = repeat([&] { return take_nearest(); });
    double own = 0;
    for (const RunLevels& run : runs_) own += own_error(run);
    // By the coarseness of the spread others may seem to do better than a run's own.
    mixed_.excess = std::max(0.0, left - own);
    return std::move(mixed_);
  }

 private:
  // Steps until `error` falls no more: what it then is.
  template <typename Error>
  double repeat(const Error& error) {
    double before = std::numeric_limits<double>::infinity();
    for (int turn = 0; turn < kMostTurns; ++turn) {
      const double now = error();
      if (!std::isfinite(now))
        throw base::InvalidInput("sensitivities or errors are too large to be added up");
      if (!(now < before * (1 - kLeastGain))) return now;
      before = now;
      if (fits_ranges_) fit_ranges();
      fit_levels();
    }
    return error();
  }

  // Numbers at the level that their run has them at.
  void keep_codes() {
    for (const RunLevels& run : runs_) {
      const std::vector<WeightSpread::Nearest> nearest = run.spread.by_level(run.levels);
      for (std::size_t channel = 0; channel < mixed_.ranges.size(); ++channel) {
        const Normaliser& range = run.ranges[channel];
        if (range.range == 0) {
          add(channel, nearest_to(0, run.levels), range.zero, run.weights[channel]);
          continue;
        }
        for (std::size_t k = 0; k < nearest.size(); ++k)
          add(channel, k, range.range * run.levels[k] + range.zero, run.weights[channel] * nearest[k].share);
      }
    }
  }

  // At the nearest of the mixed levels. What is left then.
  double take_nearest() {
    std::ranges::fill(sums_, WeightSum{});
    double error = 0;
    for (std::size_t channel = 0; channel < mixed_.ranges.size(); ++channel) {
      for (const RunLevels& run : runs_) {
        const Normaliser& range = run.ranges[channel];
        const double weight = run.weights[channel];
        const std::vector<double> levels = levels_from(range, mixed_.ranges[channel]);
        if (range.range == 0) {
          const std::size_t level = nearest_to(0, levels);
          add(channel, level, range.zero, weight);
          error += weight * square(levels[level]);
          continue;
        }
        const std::vector<WeightSpread::Nearest> nearest = run.spread.by_level(levels);
        for (std::size_t k = 0; k < nearest.size(); ++k) {
          WeightSum& sum = sums_of(channel)[k];
          sum.weight += weight * nearest[k].share;
          sum.moment += weight * (range.range * nearest[k].moment + range.zero * nearest[k].share);
          error += weight * square(range.range) * nearest[k].error;
        }
      }
    }
    return error;
  }

  void add(std::size_t channel, std::size_t level, double value, double weight) {
    WeightSum& sum = sums_of(channel)[level];
    sum.weight += weight;
    sum.moment += weight * value;
    squares_[channel] += weight * value * value;
  }

  // The mixed levels as a run's channel has them: in units of its range, if it has one, from its zero.
  [[nodiscard]] std::vector<double> levels_from(const Normaliser& own, const Normaliser& mixed) const {
    std::vector<double> levels = mixed_.levels;
    for (double& level : levels)
      level = (mixed.range * level + mixed.zero - own.zero) / (own.range > 0 ? own.range : 1);
    return levels;
  }

  [[nodiscard]] double own_error(const RunLevels& run) const {
    const double error = run.spread.squared_error(run.levels);
    double sum = 0;
    for (std::size_t channel = 0; channel < run.ranges.size(); ++channel)
      sum += run.weights[channel] * square(run.ranges[channel].range) * error;
    return sum;
  }

  void fit_ranges() {
    for (std::size_t channel = 0; channel < mixed_.ranges.size(); ++channel) {
      const std::span<const WeightSum> sums = sums_of(channel);
      Normaliser& range = mixed_.ranges[channel];
      if (const auto found = least_squares_range(mixed_.levels, sums)) {
        range = *found;
        continue;
      }
      double weight = 0, rest = 0;
      for (std::size_t k = 0; k < sums.size(); ++k) {
        weight += sums[k].weight;
        rest += sums[k].moment - range.range * mixed_.levels[k] * sums[k].weight;
      }
      if (weight > 0) range.zero = rest / weight;
    }
  }

  void fit_levels() {
    std::vector<WeightSum> all(mixed_.levels.size());
    for (std::size_t channel = 0; channel < mixed_.ranges.size(); ++channel) {
      const Normaliser& range = mixed_.ranges[channel];
      const std::span<const WeightSum> sums = sums_of(channel);
      for (std::size_t k = 0; k < sums.size(); ++k) {
        all[k].moment += range.range * (sums[k].moment - range.zero * sums[k].weight);
        all[k].weight += square(range.range) * sums[k].weight;
      }
    }
    for (std::size_t k = 0; k < all.size(); ++k) {
      const double level = all[k].moment / all[k].weight;
      if (!(all[k].weight > 0) || !std::isfinite(level)) continue;
      // What lies beyond given ranges is no number of theirs.
      mixed_.levels[k] = fits_ranges_ ? level : std::clamp(level, -1.0, 1.0);
    }
    std::ranges::sort(mixed_.levels);
  }

  // The weighted squared distance of the runs' levels from the mixed ones of the same codes.
  [[nodiscard]] double distance() {
    double sum = 0;
    for (std::size_t channel = 0; channel < mixed_.ranges.size(); ++channel) {
      const Normaliser& range = mixed_.ranges[channel];
      const std::span<const WeightSum> sums = sums_of(channel);
      sum += squares_[channel];
      for (std::size_t k = 0; k < sums.size(); ++k) {
        const double place = range.range * mixed_.levels[k] + range.zero;
        sum += place * (place * sums[k].weight - 2 * sums[k].moment);
      }
    }
    return sum;
  }

  [[nodiscard]] std::span<WeightSum> sums_of(std::size_t channel) {
    return std::span(sums_).subspan(channel * mixed_.levels.size(), mixed_.levels.size());
  }

  std::span<const RunLevels> runs_;
  bool fits_ranges_;
  MixedLevels mixed_;
  std::vector<WeightSum> sums_;  // [channels, levels], of all runs
  std::vector<double> squares_;  // [channels], of the runs' own levels
};

const RunLevels& weightiest(std::span<const RunLevels> runs) {
  return *std::ranges::max_element(runs, {}, [](const RunLevels& run) {
    return std::accumulate(run.weights.begin(), run.weights.end(), 0.0);
  });
}

}  // namespace

MixedLevels mix_levels(std::span<const RunLevels> runs) {
  const RunLevels& start = weightiest(runs);
  return Mixing(runs, start.ranges, start.levels, true).fit();
}

MixedLevels mix_levels(std::span<const RunLevels> runs, std::vector<Normaliser> ranges) {
  return Mixing(runs, std::move(ranges), weightiest(runs).levels, false).fit();
}

}  // namespace kvcal::calib
