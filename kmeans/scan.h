// kmeans/scan.h: the input in chunks, and the first pass over it: checks, range and a sample.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/parallel.h"
#include "kmeans/weighted_kmeans.h"

namespace kvcal::kmeans {

/// Points and weights of one chunk, of the same size.
template <typename Real>
struct Chunk {
  std::span<const Real> points;
  std::span<const Real> weights;
};

/// Room for a chunk that has to be computed; one for each thread.
template <typename Real>
struct ChunkBuffer {
  std::vector<Real> points;
  std::vector<Real> weights;
};

/// The input as chunks, whichever way it came. Real: float or double.
template <typename Real>
class ChunkReader {
 public:
  virtual ~ChunkReader() = default;
  [[nodiscard]] virtual std::int64_t num_chunks() const = 0;
  /// A view of the input or of `buffer`. Throws base::WrongUsage where sizes differ.
  [[nodiscard]] virtual Chunk<Real> read(std::int64_t chunk, ChunkBuffer<Real>& buffer) const = 0;
};

/// Two arrays, read in place.
template <typename Real>
class SpanReader final : public ChunkReader<Real> {
 public:
  /// Throws base::WrongUsage where sizes differ.
  SpanReader(std::span<const Real> points, std::span<const Real> weights);
  [[nodiscard]] std::int64_t num_chunks() const override;
  [[nodiscard]] Chunk<Real> read(std::int64_t chunk, ChunkBuffer<Real>& buffer) const override;

 private:
  std::span<const Real> points_;
  std::span<const Real> weights_;
};

/// A caller's source.
template <typename Real>
class SourceReader final : public ChunkReader<Real> {
 public:
  explicit SourceReader(const PointSource<Real>& source) : source_(source) {}
  [[nodiscard]] std::int64_t num_chunks() const override { return source_.num_chunks(); }
  [[nodiscard]] Chunk<Real> read(std::int64_t chunk, ChunkBuffer<Real>& buffer) const override;

 private:
  const PointSource<Real>& source_;
};

/// The chunks are dealt to so many stripes. Sums kept by stripe, and added in order, are the same for any
/// number of threads.
inline constexpr std::int64_t kStripes = 16;

/// Calls body(stripe, index, chunk) for every chunk,
/// in ascending order within a stripe; stripes run in parallel.
template <typename Real, typename Body>
void for_each_chunk(const ChunkReader<Real>& reader, int threads, const Body& body) {
  const std::int64_t chunks = reader.num_chunks();
  base::parallel_for(std::min(kStripes, chunks), threads, [&](std::int64_t stripe) {
    ChunkBuffer<Real> buffer;
    for (std::int64_t index = stripe; index < chunks; index += kStripes)
      body(stripe, index, reader.read(index, buffer));
  });
}

/// One point in a few, for the layout of a histogram.
template <typename Real>
struct SamplePoint {
  Real point;
  Real weight;
};

/// What the first pass finds, over the points whose weight is not zero.
template <typename Real>
struct Scan {
  std::int64_t count = 0;
  Real smallest = 0;
  Real largest = 0;
  Real largest_weight = 0;
  std::vector<SamplePoint<Real>> sample;
};

/// Throws base::InvalidInput as solve() promises.
template <typename Real>
[[nodiscard]] Scan<Real> scan_points(const ChunkReader<Real>& reader, int threads);

}  // namespace kvcal::kmeans
