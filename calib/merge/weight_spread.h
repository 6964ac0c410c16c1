// calib/merge/weight_spread.h: where the weight of a fit lies, as far as a codebook tells.
#pragma once

#include <span>
#include <vector>

namespace kvcal::calib {

/// Shares of equal parts of [-1, 1], each spread evenly over its own.
class WeightSpread {
 public:
  /// What is nearest to one level.
  struct Nearest {
    double share = 0;
    double moment = 0;  ///< share times the mean of where it lies
    double error = 0;   ///< share times the mean squared distance
  };

  /// shares: at least three, not negative.
  explicit WeightSpread(std::span<const float> shares);
  /// Of fitted ranges: what lies beyond the end levels, -1 and 1, is counted in the end parts. It is what these hold above their
  /// neighbours, and lies where it has to for the end levels to be means.
  WeightSpread(std::span<const float> shares, std::span<const double> levels);

  /// [levels]; levels: ascending.
  [[nodiscard]] std::vector<Nearest> by_level(std::span<const double> levels) const;
  /// The mean squared distance from the nearest level.
  [[nodiscard]] double squared_error(std::span<const double> levels) const;

 private:
  struct Part {
    double begin, end, share;
  };
  [[nodiscard]] Part tail(Part& end, const Part& neighbour, std::span<const double> levels,
                          std::size_t level) const;

  std::vector<Part> parts_;  // ascending; tails have no width
};

}  // namespace kvcal::calib
