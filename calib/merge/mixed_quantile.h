// calib/merge/mixed_quantile.h: a quantile of several samples together, from a few quantiles of each.
#pragma once

#include <span>
#include <vector>

namespace kvcal::calib {

/// Where a quantile of a sample lies.
struct KnownQuantile {
  double share = 0;  ///< of the sample's numbers, at or below it: 0 to 1
  double value = 0;
};

/// What is known of one sample's distribution. Between two known quantiles it is taken for normal, and beyond them to go on so: the normal
/// score of the share is linear in the value, so that of a normal sample every quantile is exact.
class QuantileSketch {
 public:
  /// numbers: how many the sample has, at least 1. known: by share, ascending, values too; the least and the greatest number of the
  /// sample are its shares 0 and 1.
  QuantileSketch(double numbers, std::span<const KnownQuantile> known);

  [[nodiscard]] double numbers() const { return numbers_; }
  /// The share of the sample at or below x.
  [[nodiscard]] double share_below(double x) const;
  /// The inverse, for a share that is known.
  [[nodiscard]] double value_at(double share) const;

 private:
  struct Knot {
    double share, score, value;
  };
  double numbers_;
  std::vector<Knot> knots_;
};

/// The quantile of all samples together, each counted by its numbers. share: one that every sample knows; the result lies between the
/// least and the greatest of the samples' own, where the exact one lies, too (but for interpolation between two numbers of a small sample).
/// Of shares 0 and 1 it is exact.
[[nodiscard]] double mixed_quantile(std::span<const QuantileSketch> samples, double share);

}  // namespace kvcal::calib
