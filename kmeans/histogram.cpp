#include "kmeans/histogram.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>

namespace kvcal::kmeans {
namespace {

constexpr int kOffsetBits = 44;
constexpr int kStretchBits = 12;
// The best bins for cutting a density f have widths proportional to f^(-1/3), as the clusters themselves do
// (Panter and Dite): a stretch gets bins by width^(2/3) mass^(1/3). This part of them goes by mass alone, in
// case a far point swallows the rest.
constexpr double kMassShare = 0.3;

template <typename Real>
using Bits = std::conditional_t<std::is_same_v<Real, float>, std::uint32_t, std::uint64_t>;
template <typename Real>
constexpr Bits<Real> kSignBit = Bits<Real>{1} << (8 * sizeof(Real) - 1);

// Numbers as unsigned integers in the same order; -0 as 0.
template <typename Real>
std::uint64_t ordered(Real x) {
  const auto bits = std::bit_cast<Bits<Real>>(x + Real{0});
  return static_cast<Bits<Real>>(bits ^ ((bits & kSignBit<Real>) != 0 ? ~Bits<Real>{0} : kSignBit<Real>));
}

template <typename Real>
Real from_ordered(std::uint64_t value) {
  const auto bits = static_cast<Bits<Real>>(value);
  return std::bit_cast<Real>(
      static_cast<Bits<Real>>((bits & kSignBit<Real>) != 0 ? bits ^ kSignBit<Real> : ~bits));
}

// The power of two that brings a magnitude into [1/2, 1);
// as near as can be where that is out of double's range.
double normalising_factor(double magnitude) {
  if (magnitude == 0) return 1;
  int exponent = 0;
  (void)std::frexp(magnitude, &exponent);
  return std::ldexp(1.0, -std::clamp(exponent, -1000, 1000));
}

}  // namespace

template <std::floating_point Real>
Units::Units(const Scan<Real>& scan)
    : point(normalising_factor(std::max(std::abs(double{scan.smallest}), std::abs(double{scan.largest})))),
      weight(normalising_factor(double{scan.largest_weight})) {}

template <std::floating_point Real>
Layout<Real>::Layout(const Scan<Real>& scan, const Units& units, std::int64_t bins)
    : smallest_(ordered(scan.smallest)), largest_(ordered(scan.largest)) {
  const int range_bits = static_cast<int>(std::bit_width(largest_ - smallest_));
  pre_shift_ = std::max(0, range_bits - kOffsetBits);
  shift_ = std::max(0, range_bits - pre_shift_ - kStretchBits);
  mask_ = (std::uint64_t{1} << shift_) - 1;
  const std::uint64_t range = (largest_ - smallest_) >> pre_shift_;
  stretches_.resize((range >> shift_) + 1);
  const std::size_t size = stretches_.size();
  if (bins == 0) {
    for (std::size_t i = 0; i < size; ++i) stretches_[i].first_bin = num_bins_++;
    return;
  }

  const std::vector<double> mass = sampled_mass(scan, units);
  std::vector<double> share(size);
  for (std::size_t i = 0; i < size; ++i) {
    const std::uint64_t begin = std::uint64_t{i} << shift_;
    const std::uint64_t end = std::min(range, (std::uint64_t{i} + 1) << shift_);
    const double width = double{point_of(end)} * units.point - double{point_of(begin)} * units.point;
    share[i] = std::cbrt(width * width * mass[i]);
  }
  const double total_mass = std::accumulate(mass.begin(), mass.end(), 0.0);
  const double total_share = std::accumulate(share.begin(), share.end(), 0.0);
  for (std::size_t i = 0; i < size; ++i) {
    double part = kMassShare * mass[i] / total_mass;
    if (total_share > 0) part += (1 - kMassShare) * share[i] / total_share;
    stretches_[i].first_bin = num_bins_;
    stretches_[i].bins = 1 + static_cast<std::uint32_t>(part * static_cast<double>(bins));
    num_bins_ += stretches_[i].bins;
  }
}

// By number and by weight in equal parts;
// a stretch that the sample missed may still hold what a point in it would.
template <std::floating_point Real>
std::vector<double> Layout<Real>::sampled_mass(const Scan<Real>& scan, const Units& units) const {
  std::vector<double> count(stretches_.size(), 0.0);
  std::vector<double> weight(stretches_.size(), 0.0);
  for (const SamplePoint<Real>& sampled : scan.sample) {
    const std::size_t stretch = offset_of(sampled.point) >> shift_;
    count[stretch] += 1;
    weight[stretch] += double{sampled.weight} * units.weight;
  }
  const auto total_count = static_cast<double>(scan.sample.size());
  const double total_weight = std::accumulate(weight.begin(), weight.end(), 0.0);
  std::vector<double> mass(stretches_.size());
  for (std::size_t i = 0; i < mass.size(); ++i) {
    mass[i] = (count[i] + 1) / (total_count + 1);
    if (total_weight > 0) mass[i] += weight[i] / total_weight;
  }
  return mass;
}

template <std::floating_point Real>
std::uint64_t Layout<Real>::offset_of(Real x) const {
  return (std::clamp(ordered(x), smallest_, largest_) - smallest_) >> pre_shift_;
}

template <std::floating_point Real>
Real Layout<Real>::point_of(std::uint64_t offset) const {
  return from_ordered<Real>(std::min(largest_, smallest_ + (offset << pre_shift_)));
}

namespace {

// Merges in a row before a bin's sum is put away: rounding grows with their number.
constexpr std::uint16_t kMergesInARow = 512;

/// The bins of one stripe. A bin's points are merged one by one, and the sums of every kMergesInARow of them.
class StripeBins {
 public:
  [[nodiscard]] bool empty() const { return recent_.empty(); }
  void resize(std::size_t bins) {
    recent_.resize(bins);
    merges_.resize(bins);
    earlier_.resize(bins);
  }
  void add(std::size_t bin, const Run& point) {
    recent_[bin] = merge(recent_[bin], point);
    if (++merges_[bin] < kMergesInARow) return;
    earlier_[bin] = merge(earlier_[bin], recent_[bin]);
    recent_[bin] = {};
    merges_[bin] = 0;
  }
  [[nodiscard]] Run sum(std::size_t bin) const { return merge(earlier_[bin], recent_[bin]); }

 private:
  std::vector<Run> recent_;
  std::vector<std::uint16_t> merges_;
  std::vector<Run> earlier_;
};

}  // namespace

template <std::floating_point Real>
Histogram make_histogram(const ChunkReader<Real>& reader, const Layout<Real>& layout, const Units& units,
                         int threads) {
  std::vector<StripeBins> stripes(kStripes);
  for_each_chunk(reader, threads, [&](std::int64_t stripe, std::int64_t /*index*/, const Chunk<Real>& chunk) {
    StripeBins& bins = stripes[static_cast<std::size_t>(stripe)];
    bins.resize(layout.num_bins());
    for (std::size_t i = 0; i < chunk.points.size(); ++i) {
      const double weight = double{chunk.weights[i]} * units.weight;
      if (!(weight > 0)) continue;
      bins.add(layout.bin(chunk.points[i]), {weight, {units.to_solver(double{chunk.points[i]}), 0}, 0});
    }
  });
  Histogram histogram;
  for (std::uint32_t b = 0; b < layout.num_bins(); ++b) {
    Run sum;
    for (const StripeBins& bins : stripes) {
      if (!bins.empty()) sum = merge(sum, bins.sum(b));
    }
    if (sum.weight == 0) continue;
    histogram.runs.push_back(sum);
    histogram.bins.push_back(b);
  }
  return histogram;
}

namespace {

template <typename Real>
struct Kept {
  std::uint32_t group;
  Real point;
  Real weight;
};

// Sorts a group and writes each distinct point once; returns how many there are. Equal points are ordered by
// weight, so that their sum does not depend on where they came from; it is compensated, for there can be
// millions.
template <typename Real>
std::int64_t collapse(std::span<Kept<Real>> group, const Units& units, Run* out) {
  std::sort(group.begin(), group.end(), [](const Kept<Real>& a, const Kept<Real>& b) {
    return a.point < b.point || (a.point == b.point && a.weight < b.weight);
  });
  std::int64_t distinct = 0;
  for (std::size_t i = 0; i < group.size();) {
    const Real point = group[i].point;
    double weight = 0;
    double lost = 0;
    for (; i < group.size() && group[i].point == point; ++i) {
      const double w = double{group[i].weight} * units.weight;
      const double sum = weight + w;
      lost += weight >= w ? (weight - sum) + w : (w - sum) + weight;
      weight = sum;
    }
    out[distinct++] = {weight + lost, {units.to_solver(double{point}), 0}, 0};
  }
  return distinct;
}

// All kept points, grouped; within a group in the order of the stripes.
template <typename Real>
std::vector<Kept<Real>> group_points(std::vector<std::vector<Kept<Real>>>& stripes,
                                     std::span<std::int64_t> offsets) {
  for (const auto& stripe : stripes) {
    for (const Kept<Real>& kept : stripe) ++offsets[kept.group + 1];
  }
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  std::vector<std::int64_t> next(offsets.begin(), offsets.end() - 1);
  std::vector<Kept<Real>> grouped(static_cast<std::size_t>(offsets.back()));
  for (auto& stripe : stripes) {
    for (const Kept<Real>& kept : stripe) grouped[static_cast<std::size_t>(next[kept.group]++)] = kept;
    stripe = {};
  }
  return grouped;
}

}  // namespace

template <std::floating_point Real>
Gathered gather_points(const ChunkReader<Real>& reader, const Layout<Real>& layout, const Units& units,
                       std::span<const std::uint32_t> group_of, std::uint32_t groups, int threads) {
  std::vector<std::vector<Kept<Real>>> stripes(kStripes);
  for_each_chunk(reader, threads, [&](std::int64_t stripe, std::int64_t /*index*/, const Chunk<Real>& chunk) {
    std::vector<Kept<Real>>& kept = stripes[static_cast<std::size_t>(stripe)];
    for (std::size_t i = 0; i < chunk.points.size(); ++i) {
      const std::uint32_t group = group_of[layout.bin(chunk.points[i])];
      if (group == kNotGathered || !(double{chunk.weights[i]} * units.weight > 0)) continue;
      kept.push_back({group, chunk.points[i], chunk.weights[i]});
    }
  });
  std::vector<std::int64_t> offsets(groups + std::size_t{1}, 0);
  std::vector<Kept<Real>> grouped = group_points(stripes, offsets);
  std::vector<Run> points(grouped.size());
  std::vector<std::int64_t> distinct(groups);
  constexpr std::int64_t kBatch = 64;  // groups are small
  base::parallel_for((groups + kBatch - 1) / kBatch, threads, [&](std::int64_t batch) {
    for (std::int64_t g = batch * kBatch; g < std::min<std::int64_t>(groups, (batch + 1) * kBatch); ++g) {
      const auto index = static_cast<std::size_t>(g);
      const auto begin = static_cast<std::size_t>(offsets[index]);
      const auto size = static_cast<std::size_t>(offsets[index + 1]) - begin;
      distinct[index] = collapse(std::span(grouped).subspan(begin, size), units, points.data() + begin);
    }
  });
  Gathered gathered;
  gathered.offsets.push_back(0);
  std::int64_t end = 0;
  for (std::size_t g = 0; g < groups; ++g) {
    std::copy_n(points.begin() + offsets[g], distinct[g], points.begin() + end);
    end += distinct[g];
    gathered.offsets.push_back(end);
  }
  points.resize(static_cast<std::size_t>(end));
  gathered.points = std::move(points);
  return gathered;
}

template Units::Units(const Scan<float>&);
template Units::Units(const Scan<double>&);
template class Layout<float>;
template class Layout<double>;
template Histogram make_histogram(const ChunkReader<float>&, const Layout<float>&, const Units&, int);
template Histogram make_histogram(const ChunkReader<double>&, const Layout<double>&, const Units&, int);
template Gathered gather_points(const ChunkReader<float>&, const Layout<float>&, const Units&,
                                std::span<const std::uint32_t>, std::uint32_t, int);
template Gathered gather_points(const ChunkReader<double>&, const Layout<double>&, const Units&,
                                std::span<const std::uint32_t>, std::uint32_t, int);

}  // namespace kvcal::kmeans
