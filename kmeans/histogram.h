// kmeans/histogram.h: the second and third passes over the input: sums by bin, and the points of a few bins.
//
// Bins are stretches of the floating-point numbers themselves, in their order as integers: exact and monotone
// however the points are spread, from denormals to 1e30 in one input. A sample says how closely to lay
// them where.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kmeans/run.h"
#include "kmeans/scan.h"

namespace kvcal::kmeans {

/// The units of the solver, in which the largest point and the largest weight lie in [1/2, 1): powers of two
/// keep squares in range and rounding out.
struct Units {
  double point = 1;   ///< factor, a power of two
  double weight = 1;  ///< factor, a power of two

  template <std::floating_point Real>
  explicit Units(const Scan<Real>& scan);

  [[nodiscard]] double to_solver(double x) const { return x * point; }
  [[nodiscard]] double from_solver(const Mean& mean) const { return (mean.high + mean.low) / point; }
  /// A sum w x^2 back in the units of the input; infinite where that exceeds double.
  [[nodiscard]] double objective_from_solver(double sum) const {
    return std::ldexp(sum, -2 * std::ilogb(point) - std::ilogb(weight));
  }
};

/// A map from points to bins, monotone. The numbers between the smallest and the largest point are cut into
/// 2048 to 4096 equal stretches (of integers), and each of those into a number of bins of its own.
template <std::floating_point Real>
class Layout {
 public:
  /// About `bins` bins; at most 4096 more. None asked for: one for each stretch.
  Layout(const Scan<Real>& scan, const Units& units, std::int64_t bins);

  [[nodiscard]] std::uint32_t num_bins() const { return num_bins_; }
  /// A point outside of the scanned range goes to the first or last bin.
  [[nodiscard]] std::uint32_t bin(Real x) const {
    const std::uint64_t offset = offset_of(x);
    const Stretch& stretch = stretches_[offset >> shift_];
    return stretch.first_bin + static_cast<std::uint32_t>(((offset & mask_) * stretch.bins) >> shift_);
  }

 private:
  struct Stretch {
    std::uint32_t first_bin = 0;
    std::uint32_t bins = 1;
  };
  [[nodiscard]] std::uint64_t offset_of(Real x) const;
  [[nodiscard]] Real point_of(std::uint64_t offset) const;
  [[nodiscard]] std::vector<double> sampled_mass(const Scan<Real>& scan, const Units& units) const;

  std::uint64_t smallest_;  // as ordered integers
  std::uint64_t largest_;
  int pre_shift_ = 0;  // offsets are kept to 44 bits
  int shift_ = 0;      // at most 32
  std::uint64_t mask_ = 0;
  std::uint32_t num_bins_ = 0;
  std::vector<Stretch> stretches_;
};

/// The bins that hold any weight, in solver units, ascending.
struct Histogram {
  std::vector<Run> runs;
  std::vector<std::uint32_t> bins;  ///< [runs]: the bin of each
};

template <std::floating_point Real>
[[nodiscard]] Histogram make_histogram(const ChunkReader<Real>& reader, const Layout<Real>& layout,
                                       const Units& units, int threads);

inline constexpr std::uint32_t kNotGathered = std::numeric_limits<std::uint32_t>::max();

/// The points of some bins, sorted, equal points as one, in solver units:
/// group g is points[offsets[g], offsets[g + 1]).
struct Gathered {
  std::vector<Run> points;
  std::vector<std::int64_t> offsets;  // [groups + 1]
};

/// group_of: for each bin its group, ascending with the bins, or kNotGathered.
template <std::floating_point Real>
[[nodiscard]] Gathered gather_points(const ChunkReader<Real>& reader, const Layout<Real>& layout,
                                     const Units& units, std::span<const std::uint32_t> group_of,
                                     std::uint32_t groups, int threads);

}  // namespace kvcal::kmeans
