#include "calib/merge/mixed_levels.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace kvcal::calib {
namespace {

constexpr int kMostTurns = 200;
constexpr double kLeastGain = 1e-5;

double square(double x) {
  return x * x;
}

/// What one run's numbers of a channel have at one level: their mean, and their weight.
struct Place {
  double value = 0, weight = 0;
};

/// Weighted sums over the places of a channel.
struct Sums {
  double weight = 0, level = 0, levels = 0, value = 0, product = 0;
};

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
        places_(mixed_.ranges.size() * runs.size() * mixed_.levels.size()) {}

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
    for (std::size_t r = 0; r < runs_.size(); ++r) {
      const RunLevels& run = runs_[r];
      const std::vector<WeightSpread::Nearest> nearest = run.spread.by_level(run.levels);
      for (std::size_t channel = 0; channel < mixed_.ranges.size(); ++channel) {
        const Normaliser& range = run.ranges[channel];
        const std::span<Place> places = places_of(channel, r);
        if (range.range == 0) {
          put_all(run, channel, nearest_to(0, run.levels), places);
          continue;
        }
        for (std::size_t k = 0; k < places.size(); ++k)
          places[k] = {range.range * run.levels[k] + range.zero, run.weights[channel] * nearest[k].share};
      }
    }
  }

  // At the nearest of the mixed levels. What is left then.
  double take_nearest() {
    double error = 0;
    for (std::size_t channel = 0; channel < mixed_.ranges.size(); ++channel) {
      for (std::size_t r = 0; r < runs_.size(); ++r) {
        const RunLevels& run = runs_[r];
        const Normaliser& range = run.ranges[channel];
        const std::vector<double> levels = levels_from(range, mixed_.ranges[channel]);
        const std::span<Place> places = places_of(channel, r);
        if (range.range == 0) {
          const std::size_t level = nearest_to(0, levels);
          put_all(run, channel, level, places);
          error += run.weights[channel] * square(levels[level]);
          continue;
        }
        const std::vector<WeightSpread::Nearest> nearest = run.spread.by_level(levels);
        for (std::size_t k = 0; k < places.size(); ++k) {
          const auto& [share, moment, left] = nearest[k];
          places[k] = {share > 0 ? range.range * moment / share + range.zero : 0,
                       run.weights[channel] * share};
          error += run.weights[channel] * square(range.range) * left;
        }
      }
    }
    return error;
  }

  // The mixed levels as a run's channel has them: in units of its range, if it has one, from its zero.
  [[nodiscard]] std::vector<double> levels_from(const Normaliser& own, const Normaliser& mixed) const {
    std::vector<double> levels = mixed_.levels;
    for (double& level : levels)
      level = (mixed.range * level + mixed.zero - own.zero) / (own.range > 0 ? own.range : 1);
    return levels;
  }

  static void put_all(const RunLevels& run, std::size_t channel, std::size_t level, std::span<Place> places) {
    std::ranges::fill(places, Place{});
    places[level] = {run.ranges[channel].zero, run.weights[channel]};
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
      Sums sums;
      for_each_place(channel, [&](std::size_t k, const Place& place) {
        const double level = mixed_.levels[k];
        sums.weight += place.weight;
        sums.level += place.weight * level;
        sums.levels += place.weight * level * level;
        sums.value += place.weight * place.value;
        sums.product += place.weight * place.value * level;
      });
      if (!(sums.weight > 0)) continue;
      Normaliser& range = mixed_.ranges[channel];
      // All of it at one level leaves the range open.
      const double determinant = sums.levels * sums.weight - square(sums.level);
      if (determinant > 1e-12 * sums.levels * sums.weight)
        range.range = std::max(0.0, (sums.product * sums.weight - sums.level * sums.value) / determinant);
      range.zero = (sums.value - range.range * sums.level) / sums.weight;
    }
  }

  void fit_levels() {
    std::vector<double> moments(mixed_.levels.size()), weights(mixed_.levels.size());
    for (std::size_t channel = 0; channel < mixed_.ranges.size(); ++channel) {
      const Normaliser& range = mixed_.ranges[channel];
      for_each_place(channel, [&](std::size_t k, const Place& place) {
        moments[k] += place.weight * range.range * (place.value - range.zero);
        weights[k] += place.weight * square(range.range);
      });
    }
    for (std::size_t k = 0; k < weights.size(); ++k) {
      if (!(weights[k] > 0) || !std::isfinite(moments[k] / weights[k])) continue;
      mixed_.levels[k] = moments[k] / weights[k];
      // What lies beyond given ranges is no number of theirs.
      if (!fits_ranges_) mixed_.levels[k] = std::clamp(mixed_.levels[k], -1.0, 1.0);
    }
    std::ranges::sort(mixed_.levels);
  }

  // The weighted squared distance of the places from the mixed levels of their codes.
  [[nodiscard]] double distance() const {
    double sum = 0;
    for (std::size_t channel = 0; channel < mixed_.ranges.size(); ++channel) {
      const Normaliser& range = mixed_.ranges[channel];
      for_each_place(channel, [&](std::size_t k, const Place& place) {
        sum += place.weight * square(range.range * mixed_.levels[k] + range.zero - place.value);
      });
    }
    return sum;
  }

  [[nodiscard]] std::span<Place> places_of(std::size_t channel, std::size_t run) {
    const std::size_t width = mixed_.levels.size();
    return std::span(places_).subspan((channel * runs_.size() + run) * width, width);
  }
  template <typename Visit>
  void for_each_place(std::size_t channel, const Visit& visit) const {
    const std::size_t width = runs_.size() * mixed_.levels.size();
    const std::span<const Place> places = std::span(places_).subspan(channel * width, width);
    for (std::size_t i = 0; i < width; ++i) visit(i % mixed_.levels.size(), places[i]);
  }

  std::span<const RunLevels> runs_;
  bool fits_ranges_;
  MixedLevels mixed_;
  std::vector<Place> places_;  // [channels, runs, levels]
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
