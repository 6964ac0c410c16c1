#include "calib/merge/mixed_quantile.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "base/error.h"

namespace kvcal::calib {
namespace {

double normal_share(double score) {
  return std::erfc(-score / std::numbers::sqrt2) / 2;
}

// The least x in [low, high] at which `reached`, false and then true, is true: to the last bit.
template <typename Reached>
double first_reached(double low, double high, const Reached& reached) {
  while (true) {
    const double middle = low + (high - low) / 2;
    if (!(low < middle && middle < high)) return reached(low) ? low : high;
    (reached(middle) ? high : low) = middle;
  }
}

double normal_score(double share) {
  constexpr double kBeyond = 40;  // where no share differs from 0 or 1 in double
  return first_reached(-kBeyond, kBeyond, [&](double score) { return normal_share(score) >= share; });
}

}  // namespace

KnownShares::KnownShares(double numbers, std::vector<double> shares)
    : numbers_(numbers), shares_(std::move(shares)) {
  // The least of n numbers stands for the first half of an n-th.
  const double least = 0.5 / numbers_;
  for (const double share : shares_) scores_.push_back(normal_score(std::clamp(share, least, 1 - least)));
}

QuantileSketch::QuantileSketch(const KnownShares& known, std::vector<double> values)
    : known_(&known), values_(std::move(values)) {
  if (values_.size() != known.shares().size()) {
    throw base::WrongUsage(base::concat(values_.size(), " quantiles of a sample of which ",
                                        known.shares().size(), " are known"));
  }
}

double QuantileSketch::share_below(double x) const {
  const std::span<const double> shares = known_->shares(), scores = known_->scores();
  const std::ptrdiff_t last = std::ssize(values_) - 1;
  const std::ptrdiff_t after = std::ranges::upper_bound(values_, x) - values_.begin();
  if (after == 0 && shares.front() == 0) return 0;
  if (after > last && shares.back() == 1) return 1;
  // Beyond what is known it goes on as it does there.
  const std::ptrdiff_t near = after == 0 ? 0 : after - 1;
  const std::ptrdiff_t other = after == 0 ? other_value(0, 1) : after > last ? other_value(last, -1) : after;
  const auto value = [&](std::ptrdiff_t i) { return values_[static_cast<std::size_t>(i)]; };
  const auto score = [&](std::ptrdiff_t i) { return scores[static_cast<std::size_t>(i)]; };
  if (value(near) == value(other)) return x < value(near) ? 0 : 1;
  const double slope = (score(other) - score(near)) / (value(other) - value(near));
  return normal_share(score(near) + slope * (x - value(near)));
}

std::ptrdiff_t QuantileSketch::other_value(std::ptrdiff_t begin, std::ptrdiff_t step) const {
  const double value = values_[static_cast<std::size_t>(begin)];
  for (std::ptrdiff_t i = begin; i >= 0 && i < std::ssize(values_); i += step)
    if (values_[static_cast<std::size_t>(i)] != value) return i;
  return begin;
}

double QuantileSketch::value_at(double share) const {
  const auto found = std::ranges::find(known_->shares(), share);
  if (found == known_->shares().end())
    throw base::WrongUsage(base::concat("the quantile ", share, " of a sample is not known"));
  return values_[static_cast<std::size_t>(found - known_->shares().begin())];
}

double mixed_quantile(std::span<const QuantileSketch> samples, double share) {
  double low = samples.front().value_at(share), high = low, all = 0;
  for (const QuantileSketch& sample : samples) {
    low = std::min(low, sample.value_at(share));
    high = std::max(high, sample.value_at(share));
    all += sample.numbers();
  }
  if (share == 0) return low;
  if (share == 1) return high;
  return first_reached(low, high, [&](double x) {
    double below = 0;
    for (const QuantileSketch& sample : samples) below += sample.numbers() * sample.share_below(x);
    return below >= share * all;
  });
}

}  // namespace kvcal::calib
