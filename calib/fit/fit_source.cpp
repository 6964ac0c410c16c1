#include "calib/fit/fit_source.h"

#include <algorithm>

#include "base/parallel.h"

namespace kvcal::calib {
namespace {

// Points of one chunk, about: what the second-level cache holds with room to spare.
constexpr std::int64_t kPointsPerChunk = 65536;

struct ChunkCensus {
  std::int64_t inliers = 0;
  double largest_weight = 0;
  ChunkCensus& operator+=(const ChunkCensus& other) {
    inliers += other.inliers;
    largest_weight = std::max(largest_weight, other.largest_weight);
    return *this;
  }
};

}  // namespace

FitSource::FitSource(const CapturedRows& rows, const Thresholds& thresholds, int groups, Weighting weighting,
                     int threads)
    : rows_(rows),
      thresholds_(thresholds),
      groups_(groups),
      weighting_(weighting),
      rows_per_chunk_(std::max<std::int64_t>(1, kPointsPerChunk / rows.channels())) {
  normalisers_.resize(thresholds.lower.size());
  for (std::size_t i = 0; i < normalisers_.size(); ++i) {
    normalisers_[i] = normaliser(thresholds.lower[i], thresholds.upper[i]);
  }
  const auto census =
      base::blocked_sum<ChunkCensus>(num_chunks(), 1, threads, [&](std::int64_t chunk, std::int64_t) {
        ChunkCensus count;
        visit(chunk, [&](double, double weight) {
          ++count.inliers;
          count.largest_weight = std::max(count.largest_weight, weight);
        });
        return count;
      });
  inliers_ = census.inliers;
  largest_weight_ = census.largest_weight;
}

std::int64_t FitSource::num_chunks() const {
  return (rows_.rows() + rows_per_chunk_ - 1) / rows_per_chunk_;
}

template <typename Visit>
void FitSource::visit(std::int64_t chunk, const Visit& visit) const {
  const std::int64_t end = std::min(rows_.rows(), (chunk + 1) * rows_per_chunk_);
  const std::int64_t channels = rows_.channels();
  const std::int64_t group_width = groups_ > 0 ? channels / groups_ : 1;
  const bool with_gradients = rows_.has_gradients() && weighting_ != Weighting::kUnit;
  for (std::int64_t r = chunk * rows_per_chunk_; r < end; ++r) {
    const auto x = rows_.x(r);
    const auto gradients = with_gradients ? rows_.gradients(r) : std::span<const float>{};
    for (std::int64_t c = 0; c < channels; ++c) {
      const auto pair = static_cast<std::size_t>(groups_ > 0 ? r * groups_ + c / group_width : c);
      const Normaliser& normal = normalisers_[pair];
      const float value = x[static_cast<std::size_t>(c)];
      if (normal.range == 0 || value < thresholds_.lower[pair] || value > thresholds_.upper[pair]) continue;
      double weight = 1;
      if (with_gradients) {
        const double gradient = gradients[static_cast<std::size_t>(c)];
        weight = gradient * gradient;
      }
      if (weighting_ == Weighting::kRange) weight *= normal.range * normal.range;
      visit((value - normal.zero) / normal.range, weight);
    }
  }
}

void FitSource::load(std::int64_t chunk, std::vector<double>& points, std::vector<double>& weights) const {
  const auto capacity = static_cast<std::size_t>(rows_per_chunk_ * rows_.channels());
  points.resize(capacity);
  weights.resize(capacity);
  std::size_t count = 0;
  visit(chunk, [&](double point, double weight) {
    points[count] = point;
    weights[count] = weight;
    ++count;
  });
  points.resize(count);
  weights.resize(count);
}

}  // namespace kvcal::calib
