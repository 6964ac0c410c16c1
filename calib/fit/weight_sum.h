// calib/fit/weight_sum.h: the weighted least squares of one channel's range.
#pragma once

#include <optional>
#include <span>

#include "calib/fit/thresholds.h"

namespace kvcal::calib {

/// Of some numbers: their weight, and the sum of weights times numbers.
struct WeightSum {
  double weight = 0, moment = 0;
};

/// Range and zero by which range * level + zero lies nearest to the numbers of each level. Nothing where all weight lies at one level, which
/// leaves the range open, or where it would not be above 0.
[[nodiscard]] std::optional<Normaliser> least_squares_range(std::span<const double> levels,
                                                            std::span<const WeightSum> numbers);

}  // namespace kvcal::calib
