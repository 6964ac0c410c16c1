#include "calib/fit/fit_source.h"

#include <algorithm>

#include "base/parallel.h"

namespace kvcal::calib {
namespace {

// Points of one chunk, about: what the second-level cache holds with room to spare.
constexpr std::int64_t kPointsPerChunk = 65536;
// Tokens of those that are read together, a multiple of this: what the first-level cache holds, about.
constexpr std::int64_t kTokensAtOnce = 32;
constexpr std::int64_t kPointsAtOnce = 4096;

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

FitSource::FitSource(const CapturedTokens& tokens, const Thresholds& thresholds, const PairLayout& layout,
                     Weighting weighting, int threads)
    : tokens_(tokens),
      thresholds_(thresholds),
      layout_(layout),
      weighting_(weighting),
      tokens_per_chunk_(std::max<std::int64_t>(1, kPointsPerChunk / tokens.channels())) {
  pairs_.resize(thresholds.lower.size());
  for (std::size_t i = 0; i < pairs_.size(); ++i) {
    Pair& pair = pairs_[i];
    pair.normaliser = normaliser(thresholds.lower[i], thresholds.upper[i]);
    if (weighting == Weighting::kRange) pair.cost = pair.normaliser.range * pair.normaliser.range;
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

FitSource::FitSource(const FitSource& other, std::span<const Normaliser> ranges) : FitSource(other) {
  for (std::size_t i = 0; i < pairs_.size(); ++i) {
    Pair& pair = pairs_[i];
    if (pair.normaliser.range == 0) continue;
    const double stretch = ranges[i].range / pair.normaliser.range;
    pair = {ranges[i], pair.cost * stretch * stretch};
  }
}

std::int64_t FitSource::num_chunks() const {
  return (tokens_.tokens() + tokens_per_chunk_ - 1) / tokens_per_chunk_;
}

template <typename Visit>
void FitSource::visit(std::int64_t chunk, const Visit& visit) const {
  const Range channels{0, tokens_.channels()};
  const Range whole{chunk * tokens_per_chunk_, std::min(tokens_.tokens(), (chunk + 1) * tokens_per_chunk_)};
  const std::int64_t at_once =
      std::max<std::int64_t>(1, kPointsAtOnce / channels.end / kTokensAtOnce) * kTokensAtOnce;
  // A token's pairs of thresholds, and the channels of each.
  const std::int64_t pairs = layout_.by_channel() ? channels.end : layout_.per_token;
  const std::int64_t width = channels.end / pairs;
  const bool with_gradients = tokens_.has_gradients() && weighting_ != Weighting::kUnit;
  std::vector<float> x(static_cast<std::size_t>(at_once * channels.end));
  std::vector<float> gradients(with_gradients ? x.size() : 0);
  for (std::int64_t begin = whole.begin; begin < whole.end; begin += at_once) {
    const Range some{begin, std::min(whole.end, begin + at_once)};
    tokens_.read_x(some, channels, x);
    if (with_gradients) tokens_.read_gradients(some, channels, gradients);
    for (std::int64_t t = 0; t < some.size(); ++t) {
      const std::int64_t first_pair = layout_.by_channel() ? 0 : (some.begin + t) * layout_.per_token;
      for (std::int64_t p = 0; p < pairs; ++p) {
        const auto pair = static_cast<std::size_t>(first_pair + p);
        const auto& [normal, cost] = pairs_[pair];
        if (normal.range == 0) continue;
        for (std::int64_t c = p * width; c < (p + 1) * width; ++c) {
          const auto index = static_cast<std::size_t>(t * channels.end + c);
          const float value = x[index];
          if (value < thresholds_.lower[pair] || value > thresholds_.upper[pair]) continue;
          double weight = 1;
          if (with_gradients) {
            const double gradient = gradients[index];
            weight = gradient * gradient;
          }
          visit((value - normal.zero) / normal.range, weight * cost);
        }
      }
    }
  }
}

KeptPoints::KeptPoints(const FitSource& source, int threads) : source_(source) {
  constexpr std::int64_t kBytes = 2 * sizeof(double);
  if (source.inliers() > kMost / kBytes) return;
  chunks_.resize(static_cast<std::size_t>(source.num_chunks()));
  base::parallel_for(source.num_chunks(), threads, [&](std::int64_t i) {
    Chunk& chunk = chunks_[static_cast<std::size_t>(i)];
    source.load(i, chunk.points, chunk.weights);
    // load() makes room for outliers, too.
    chunk.points.shrink_to_fit();
    chunk.weights.shrink_to_fit();
  });
}

void KeptPoints::load(std::int64_t chunk, std::vector<double>& points, std::vector<double>& weights) const {
  if (chunks_.empty()) {
    source_.load(chunk, points, weights);
    return;
  }
  const Chunk& kept = chunks_[static_cast<std::size_t>(chunk)];
  points = kept.points;
  weights = kept.weights;
}

void FitSource::load(std::int64_t chunk, std::vector<double>& points, std::vector<double>& weights) const {
  const auto capacity = static_cast<std::size_t>(tokens_per_chunk_ * tokens_.channels());
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
