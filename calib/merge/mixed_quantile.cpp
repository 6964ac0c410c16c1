#include "calib/merge/mixed_quantile.h"

#include <algorithm>
#include <cmath>
#include <numbers>

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

// The first whose value differs from that of the first of all; the first where none does.
template <typename Iterator>
Iterator other_value(Iterator begin, Iterator end) {
  const auto found = std::find_if(begin, end, [&](const auto& knot) { return knot.value != begin->value; });
  return found == end ? begin : found;
}

double normal_score(double share) {
  constexpr double kBeyond = 40;  // where no share differs from 0 or 1 in double
  return first_reached(-kBeyond, kBeyond, [&](double score) { return normal_share(score) >= share; });
}

}  // namespace

QuantileSketch::QuantileSketch(double numbers, std::span<const KnownQuantile> known) : numbers_(numbers) {
  // The least of n numbers stands for the first half of an n-th.
  const double least = 0.5 / numbers_;
  for (const KnownQuantile& quantile : known)
    knots_.push_back(
        {quantile.share, normal_score(std::clamp(quantile.share, least, 1 - least)), quantile.value});
}

double QuantileSketch::share_below(double x) const {
  const auto after = std::ranges::upper_bound(knots_, x, {}, &Knot::value);
  if (after == knots_.begin() && knots_.front().share == 0) return 0;
  if (after == knots_.end() && knots_.back().share == 1) return 1;
  // Beyond what is known it goes on as it does there.
  const Knot& near = after == knots_.begin() ? *after : *(after - 1);
  const Knot& other = after == knots_.begin() ? *other_value(knots_.begin(), knots_.end())
                      : after == knots_.end() ? *other_value(knots_.rbegin(), knots_.rend())
                                              : *after;
  if (near.value == other.value) return x < near.value ? 0 : 1;
  const double slope = (other.score - near.score) / (other.value - near.value);
  return normal_share(near.score + slope * (x - near.value));
}

double QuantileSketch::value_at(double share) const {
  const auto found = std::ranges::find(knots_, share, &Knot::share);
  if (found == knots_.end())
    throw base::WrongUsage(base::concat("the quantile ", share, " of a sample is not known"));
  return found->value;
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
