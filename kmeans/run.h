// kmeans/run.h: stretches of neighbouring points: their sums, and the cost of making one a cluster.
//
// Sums are kept as weight, mean and scatter and only ever merged, never subtracted, so that no cancellation
// can occur. Means have twice a double's digits: a distance between two of them is then as exact as a double
// can be, for weights that span forty decades and for points far from zero beside their distances.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvcal::kmeans {

/// A number as the unevaluated sum of two doubles, `low` at most a rounding of `high`: 106 digits of two.
struct Mean {
  double high = 0;
  double low = 0;
};

/// to - from, to a few roundings of itself.
[[nodiscard]] inline double distance(const Mean& from, const Mean& to) {
  return (to.high - from.high) + (to.low - from.low);
}

/// mean + step, the part of it that `high` cannot hold kept in `low` (Knuth's two-sum).
[[nodiscard]] inline Mean moved(const Mean& mean, double step) {
  const double high = mean.high + step;
  const double taken = high - mean.high;
  const double lost = (mean.high - (high - taken)) + (step - taken);
  return {high, mean.low + lost};
}

/// Neighbouring points as one. An empty run has weight 0.
struct Run {
  double weight = 0;
  Mean mean;
  double scatter = 0;  ///< sum w (x - mean)^2: the cost of the run as one cluster
};

/// The scatter of a and b together; a or b may be empty, but not both.
[[nodiscard]] inline double merged_scatter(const Run& a, const Run& b) {
  const double apart = distance(a.mean, b.mean);
  return a.scatter + b.scatter + apart * apart * (a.weight * (b.weight / (a.weight + b.weight)));
}

/// Chan's update. The new mean starts from the heavier of the two,
/// or it would round in units of the distance between them.
[[nodiscard]] inline Run merge(const Run& a, const Run& b) {
  if (a.weight == 0) return b;
  if (b.weight == 0) return a;
  const double weight = a.weight + b.weight;
  const double apart = distance(a.mean, b.mean);
  // Selects, not branches: which run is the heavier cannot be predicted.
  const bool from_a = a.weight >= b.weight;
  const double step = apart * (std::min(a.weight, b.weight) / weight);
  const Mean mean = moved(from_a ? a.mean : b.mean, from_a ? step : -step);
  return {weight, mean, a.scatter + b.scatter + apart * step * std::max(a.weight, b.weight)};
}

/// Any stretch of an array of runs in O(log n), by a binary tree: rounding grows with log n only.
class RunTree {
 public:
  explicit RunTree(std::span<const Run> runs)
      : size_(static_cast<std::int64_t>(runs.size())),
        leaves_(std::bit_ceil(runs.size() + 1)),
        nodes_(2 * leaves_) {
    for (std::size_t i = 0; i < runs.size(); ++i) nodes_[leaves_ + i] = runs[i];
    for (std::size_t i = leaves_ - 1; i > 0; --i) nodes_[i] = merge(nodes_[2 * i], nodes_[2 * i + 1]);
  }

  [[nodiscard]] std::int64_t size() const { return size_; }
  [[nodiscard]] const Run& operator[](std::int64_t i) const {
    return nodes_[leaves_ + static_cast<std::size_t>(i)];
  }

  /// The runs [begin, end) as one.
  [[nodiscard]] Run merged(std::int64_t begin, std::int64_t end) const {
    Run left;
    Run right;
    std::size_t l = leaves_ + static_cast<std::size_t>(begin);
    std::size_t r = leaves_ + static_cast<std::size_t>(end);
    for (; l < r; l /= 2, r /= 2) {
      if (l % 2 == 1) left = merge(left, nodes_[l++]);
      if (r % 2 == 1) right = merge(nodes_[--r], right);
    }
    return merge(left, right);
  }

 private:
  std::int64_t size_;
  std::size_t leaves_;
  std::vector<Run> nodes_;  // [2 leaves]: node i has the children 2i and 2i + 1; padded with empty runs
};

/// Any stretch of an array of runs in O(1), for n log n memory: row h holds, for each block of 2^(h+1) runs,
/// the sums from its middle outwards; a stretch is the merge of the two that meet in the middle of the
/// smallest block that holds it.
class RunTable {
 public:
  explicit RunTable(std::vector<Run> runs) : size_(runs.size()), rows_(std::move(runs)) {
    const std::size_t rows = size_ < 2 ? 1 : static_cast<std::size_t>(std::bit_width(size_ - 1));
    rows_.resize(rows * size_);
    for (std::size_t h = 1; h < rows; ++h) fill_row(rows_.data() + h * size_, std::size_t{1} << h);
  }

  /// The cost of the runs [begin, end) as one cluster; 0 where begin == end.
  [[nodiscard]] double cost(std::int32_t begin, std::int32_t end) const {
    if (end - begin < 2) return end == begin ? 0 : rows_[static_cast<std::size_t>(begin)].scatter;
    const Run* const row = row_of(begin, end);
    return merged_scatter(row[begin], row[end - 1]);
  }

  /// The runs [begin, end) as one.
  [[nodiscard]] Run merged(std::int32_t begin, std::int32_t end) const {
    if (end - begin < 2) return end == begin ? Run{} : rows_[static_cast<std::size_t>(begin)];
    const Run* const row = row_of(begin, end);
    return merge(row[begin], row[end - 1]);
  }

 private:
  [[nodiscard]] const Run* row_of(std::int32_t begin, std::int32_t end) const {
    const auto differing = static_cast<std::uint32_t>(begin ^ (end - 1));
    return rows_.data() + static_cast<std::size_t>(std::bit_width(differing) - 1) * size_;
  }

  void fill_row(Run* row, std::size_t half) {
    const Run* const runs = rows_.data();
    for (std::size_t middle = half; middle < size_; middle += 2 * half) {
      row[middle - 1] = runs[middle - 1];
      for (std::size_t i = middle - 1; i > middle - half; --i) row[i - 1] = merge(runs[i - 1], row[i]);
      row[middle] = runs[middle];
      for (std::size_t i = middle + 1; i < middle + half && i < size_; ++i)
        row[i] = merge(row[i - 1], runs[i]);
    }
  }

  std::size_t size_;
  std::vector<Run> rows_;  // [rows][size]; row 0 is the runs themselves
};

}  // namespace kvcal::kmeans
