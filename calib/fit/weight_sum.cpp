#include "calib/fit/weight_sum.h"

#include <cstddef>

namespace kvcal::calib {

std::optional<Normaliser> least_squares_range(std::span<const double> levels,
                                              std::span<const WeightSum> numbers) {
  double weight = 0, moment = 0, level_sum = 0, level_squares = 0, level_moment = 0;
  for (std::size_t i = 0; i < levels.size(); ++i) {
    weight += numbers[i].weight;
    moment += numbers[i].moment;
    level_sum += numbers[i].weight * levels[i];
    level_squares += numbers[i].weight * levels[i] * levels[i];
    level_moment += numbers[i].moment * levels[i];
  }
  const double determinant = level_squares * weight - level_sum * level_sum;
  if (!(determinant > 1e-12 * level_squares * weight)) return std::nullopt;
  const double range = (level_moment * weight - level_sum * moment) / determinant;
  if (!(range > 0)) return std::nullopt;
  return Normaliser{(moment - range * level_sum) / weight, range};
}

}  // namespace kvcal::calib
