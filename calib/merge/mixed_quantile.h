// calib/merge/mixed_quantile.h: a quantile of several samples together, from a few quantiles of each.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace kvcal::calib {

/// Which quantiles are known of samples of one size.
class KnownShares {
 public:
  /// numbers: how many such a sample has, at least 1. shares: of them at or below a quantile, ascending; the least and the greatest number are
  /// shares 0 and 1.
  KnownShares(double numbers, std::vector<double> shares);

  [[nodiscard]] double numbers() const { return numbers_; }
  [[nodiscard]] std::span<const double> shares() const { return shares_; }
  /// Normal scores, of each share.
  [[nodiscard]] std::span<const double> scores() const { return scores_; }

 private:
  double numbers_;
  std::vector<double> shares_, scores_;
};

/// What is known of one sample's distribution. Between two known quantiles it is taken for normal, and beyond them to go on so: the normal
/// score of the share is linear in the value, so that of a normal sample every quantile is exact.
class QuantileSketch {
 public:
  /// known: outlives this object. values: of each of its shares, ascending.
  QuantileSketch(const KnownShares& known, std::vector<double> values);

  [[nodiscard]] double numbers() const { return known_->numbers(); }
  /// The share of the sample at or below x.
  [[nodiscard]] double share_below(double x) const;
  /// The inverse, for a share that is known.
  [[nodiscard]] double value_at(double share) const;

 private:
  /// The first place from `begin` on, in steps of `step`, whose value differs from that at `begin`; `begin` where none does.
  [[nodiscard]] std::ptrdiff_t other_value(std::ptrdiff_t begin, std::ptrdiff_t step) const;

  const KnownShares* known_;
  std::vector<double> values_;
};

/// The quantile of all samples together, each counted by its numbers. share: one that every sample knows; the result lies between the
/// least and the greatest of the samples' own, where the exact one lies, too (but for interpolation between two numbers of a small sample).
/// Of shares 0 and 1 it is exact.
[[nodiscard]] double mixed_quantile(std::span<const QuantileSketch> samples, double share);

}  // namespace kvcal::calib
