#include "cuda/threshold_finder.h"

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "cuda/vector_codec.h"

namespace kvcal::codec {
namespace {

// More extremes than these are found faster by partitioning the numbers.
constexpr std::size_t kMostExtremes = 16;

// Puts x into its place among the sorted `kept`, the last of which goes.
template <typename Before>
void insert(std::vector<float>& kept, float x, const Before& before) {
  std::size_t at = kept.size() - 1;
  for (; at > 0 && before(x, kept[at - 1]); --at) kept[at] = kept[at - 1];
  kept[at] = x;
}

}  // namespace

ThresholdFinder::ThresholdFinder(std::size_t count, double outlier_fraction)
    : count_(count), lower_q_(outlier_fraction / 2), upper_q_(1 - outlier_fraction / 2) {
  if (count == 0) throw base::WrongUsage("the thresholds of no values");
  if (!(outlier_fraction >= 0 && outlier_fraction < 0.5)) {
    throw base::WrongUsage(
        base::concat("the outlier fraction is ", outlier_fraction, "; it is at least 0 and below 0.5"));
  }
  lower_ = quantile_place(lower_q_, static_cast<unsigned>(count));
  upper_ = quantile_place(upper_q_, static_cast<unsigned>(count));
  low_count_ = std::min<std::size_t>(count, lower_.below + 2);
  high_count_ = count - upper_.below;
  by_extremes_ = std::max(low_count_, high_count_) <= kMostExtremes;
}

void ThresholdFinder::keep_extremes(std::span<const float> x) {
  const auto first = [&](std::size_t count) { return x.begin() + static_cast<std::ptrdiff_t>(count); };
  low_.assign(x.begin(), first(low_count_));
  high_.assign(x.begin(), first(high_count_));
  std::sort(low_.begin(), low_.end());
  std::sort(high_.begin(), high_.end(), std::greater<>());
  for (const float value : x.subspan(low_count_)) {
    if (value < low_.back()) insert(low_, value, std::less<>());
  }
  for (const float value : x.subspan(high_count_)) {
    if (value > high_.back()) insert(high_, value, std::greater<>());
  }
}

ThresholdPair ThresholdFinder::find(std::span<const float> x) {
  if (x.size() != count_)
    throw base::InvalidInput(base::concat("the thresholds of ", x.size(), " numbers, expected ", count_));
  if (!by_extremes_) {
    buffer_.assign(x.begin(), x.end());
    const float lower = quantile(buffer_, lower_q_);
    return {lower, quantile(buffer_, upper_q_)};
  }
  keep_extremes(x);
  const std::size_t from_top = count_ - 1 - upper_.below;
  return {between(low_[lower_.below], low_[std::min<std::size_t>(lower_.below + 1, low_.size() - 1)],
                  lower_.fraction),
          between(high_[from_top], high_[from_top - (from_top > 0 ? 1 : 0)], upper_.fraction)};
}

}  // namespace kvcal::codec
