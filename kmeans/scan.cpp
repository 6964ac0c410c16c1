#include "kmeans/scan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"

namespace kvcal::kmeans {
namespace {

constexpr std::int64_t kSpanChunk = std::int64_t{1} << 16;
// One point in so many is sampled: a small part of the input, and prime,
// for channels often come in powers of two.
constexpr std::size_t kSampleStride = 127;

template <typename Real>
struct ChunkScan {
  std::int64_t size = 0;
  std::int64_t count = 0;
  std::int64_t first_bad = -1;  // in the chunk
  Real bad_point = 0;
  Real bad_weight = 0;
  Real smallest = std::numeric_limits<Real>::infinity();
  Real largest = -std::numeric_limits<Real>::infinity();
  Real largest_weight = 0;
  std::vector<SamplePoint<Real>> sample;
};

template <typename Real>
bool acceptable(Real point, Real weight) {
  return std::isfinite(point) && std::isfinite(weight) && weight >= 0;
}

// Eight independent lanes, so that compilers use vectors.
template <typename Real>
void scan_lanes(const Chunk<Real>& chunk, ChunkScan<Real>& result) {
  constexpr std::size_t kLanes = 8;
  constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
  Real smallest[kLanes];
  Real largest[kLanes];
  Real heaviest[kLanes] = {};
  std::int32_t count[kLanes] = {};
  std::int32_t bad[kLanes] = {};
  std::fill_n(smallest, kLanes, kInfinity);
  std::fill_n(largest, kLanes, -kInfinity);
  const auto add = [&](std::size_t i, std::size_t lane) {
    const Real x = chunk.points[i];
    const Real w = chunk.weights[i];
    const bool fine = std::abs(x) < kInfinity && w >= 0 && w < kInfinity;
    bad[lane] |= fine ? 0 : 1;
    const Real low = w > 0 ? x : kInfinity;
    const Real high = w > 0 ? x : -kInfinity;
    smallest[lane] = low < smallest[lane] ? low : smallest[lane];
    largest[lane] = high > largest[lane] ? high : largest[lane];
    heaviest[lane] = w > heaviest[lane] ? w : heaviest[lane];
    count[lane] += w > 0 ? 1 : 0;
  };
  const std::size_t whole = chunk.points.size() / kLanes * kLanes;
  for (std::size_t i = 0; i < whole; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (std::size_t i = whole; i < chunk.points.size(); ++i) add(i, i - whole);
  bool any_bad = false;
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    result.smallest = std::min(result.smallest, smallest[lane]);
    result.largest = std::max(result.largest, largest[lane]);
    result.largest_weight = std::max(result.largest_weight, heaviest[lane]);
    result.count += count[lane];
    any_bad = any_bad || bad[lane] != 0;
  }
  if (any_bad) result.first_bad = 0;
}

// The lanes' counters are 32 bits wide: a chunk larger than that is scanned in pieces.
constexpr std::size_t kPiece = std::size_t{1} << 24;

template <typename Real>
ChunkScan<Real> scan_chunk(const Chunk<Real>& chunk) {
  ChunkScan<Real> result;
  result.size = static_cast<std::int64_t>(chunk.points.size());
  for (std::size_t begin = 0; begin < chunk.points.size(); begin += kPiece) {
    const std::size_t size = std::min(kPiece, chunk.points.size() - begin);
    scan_lanes<Real>({chunk.points.subspan(begin, size), chunk.weights.subspan(begin, size)}, result);
  }
  if (result.first_bad >= 0) {
    std::size_t i = 0;
    while (acceptable(chunk.points[i], chunk.weights[i])) ++i;
    result.first_bad = static_cast<std::int64_t>(i);
    result.bad_point = chunk.points[i];
    result.bad_weight = chunk.weights[i];
    return result;
  }
  for (std::size_t i = 0; i < chunk.points.size(); i += kSampleStride) {
    if (chunk.weights[i] > 0) result.sample.push_back({chunk.points[i], chunk.weights[i]});
  }
  return result;
}

template <typename Real>
[[noreturn]] void refuse(std::int64_t index, Real point, Real weight) {
  if (!std::isfinite(point)) {
    throw base::InvalidInput(
        base::concat("k-means: the point at index ", index, " is ", point,
                     "; points must be finite: remove it, or look where it was computed"));
  }
  throw base::InvalidInput(
      base::concat("k-means: the weight at index ", index, " is ", weight,
                   "; weights must be finite and not negative: look where it was computed"));
}

}  // namespace

template <typename Real>
SpanReader<Real>::SpanReader(std::span<const Real> points, std::span<const Real> weights)
    : points_(points), weights_(weights) {
  if (points.size() != weights.size()) {
    throw base::WrongUsage(base::concat("k-means: ", points.size(), " points but ", weights.size(),
                                        " weights; give one weight for each point"));
  }
}

template <typename Real>
std::int64_t SpanReader<Real>::num_chunks() const {
  return (static_cast<std::int64_t>(points_.size()) + kSpanChunk - 1) / kSpanChunk;
}

template <typename Real>
Chunk<Real> SpanReader<Real>::read(std::int64_t chunk, ChunkBuffer<Real>& /*buffer*/) const {
  const auto begin = static_cast<std::size_t>(chunk * kSpanChunk);
  const std::size_t size = std::min<std::size_t>(kSpanChunk, points_.size() - begin);
  return {points_.subspan(begin, size), weights_.subspan(begin, size)};
}

template <typename Real>
Chunk<Real> SourceReader<Real>::read(std::int64_t chunk, ChunkBuffer<Real>& buffer) const {
  source_.load(chunk, buffer.points, buffer.weights);
  if (buffer.points.size() != buffer.weights.size()) {
    throw base::WrongUsage(base::concat("k-means: chunk ", chunk, " has ", buffer.points.size(),
                                        " points but ", buffer.weights.size(),
                                        " weights; give one weight for each point"));
  }
  return {buffer.points, buffer.weights};
}

template <typename Real>
Scan<Real> scan_points(const ChunkReader<Real>& reader, int threads) {
  const std::int64_t chunks = reader.num_chunks();
  std::vector<ChunkScan<Real>> parts(static_cast<std::size_t>(std::max<std::int64_t>(chunks, 0)));
  for_each_chunk(reader, threads, [&](std::int64_t /*stripe*/, std::int64_t chunk, const Chunk<Real>& data) {
    parts[static_cast<std::size_t>(chunk)] = scan_chunk(data);
  });
  Scan<Real> scan;
  scan.smallest = std::numeric_limits<Real>::infinity();
  scan.largest = -std::numeric_limits<Real>::infinity();
  std::int64_t size = 0;
  for (const ChunkScan<Real>& part : parts) {
    if (part.first_bad >= 0) refuse(size + part.first_bad, part.bad_point, part.bad_weight);
    size += part.size;
    scan.count += part.count;
    scan.smallest = std::min(scan.smallest, part.smallest);
    scan.largest = std::max(scan.largest, part.largest);
    scan.largest_weight = std::max(scan.largest_weight, part.largest_weight);
    scan.sample.insert(scan.sample.end(), part.sample.begin(), part.sample.end());
  }
  if (size == 0) throw base::InvalidInput("k-means: no points; at least one is needed");
  if (scan.count == 0) {
    throw base::InvalidInput(
        base::concat("k-means: all ", size, " weights are zero; give weights of 1 for a plain fit"));
  }
  return scan;
}

template class SpanReader<float>;
template class SpanReader<double>;
template class SourceReader<float>;
template class SourceReader<double>;
template Scan<float> scan_points(const ChunkReader<float>&, int);
template Scan<double> scan_points(const ChunkReader<double>&, int);

}  // namespace kvcal::kmeans
