#include "calib/fit/qnorm.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/parallel.h"
#include "cuda/vector_codec.h"

namespace kvcal::calib {
namespace {

/// Count, mean and sum of squared differences from it, merged pairwise (Chan, Golub and LeVeque 1983).
struct Moments {
  double count = 0, mean = 0, squares = 0;

  Moments& operator+=(const Moments& other) {
    if (other.count == 0) return *this;
    const double total = count + other.count;
    const double shift = other.mean - mean;
    squares += other.squares + shift * shift * count * other.count / total;
    mean += shift * other.count / total;
    count = total;
    return *this;
  }
  [[nodiscard]] double deviation() const { return count > 0 ? std::sqrt(squares / count) : 0; }
};

Moments moments_of(std::span<const double> values) {
  Moments result;
  result.count = static_cast<double>(values.size());
  if (values.empty()) return result;
  double sum = 0;
  for (const double value : values) sum += value;
  result.mean = sum / result.count;
  for (const double value : values) result.squares += (value - result.mean) * (value - result.mean);
  return result;
}

/// Moments of the points, and how many of them took each code of each datatype.
struct QuantisedMoments {
  Moments exact;
  std::vector<std::array<std::int64_t, codec::kMaxCentroids>> codes;  // [datatypes]
  QuantisedMoments& operator+=(const QuantisedMoments& other) {
    exact += other.exact;
    if (codes.empty()) codes.resize(other.codes.size());
    for (std::size_t i = 0; i < other.codes.size(); ++i) {
      for (std::size_t code = 0; code < codes[i].size(); ++code) codes[i][code] += other.codes[i][code];
    }
    return *this;
  }
};

// Of a datatype's levels, each as often as its code was taken.
Moments moments_of_codes(const std::array<std::int64_t, codec::kMaxCentroids>& codes,
                         const codec::Datatype& datatype) {
  Moments result;
  for (std::size_t code = 0; code < codes.size(); ++code) {
    if (codes[code] > 0) result += {static_cast<double>(codes[code]), double{datatype.levels[code]}, 0};
  }
  return result;
}

struct Chunk {
  std::vector<double> points, weights;
};

Chunk load_chunk(const kmeans::PointSource<double>& source, std::int64_t index) {
  Chunk chunk;
  source.load(index, chunk.points, chunk.weights);
  return chunk;
}

double nearest_level(double point, const codec::Datatype& datatype) {
  return datatype.levels[codec::nearest_code(static_cast<float>(point), datatype)];
}

}  // namespace

std::vector<QNorm> qnorm(const kmeans::PointSource<double>& source,
                         const std::vector<std::vector<float>>& centroids, int threads) {
  std::vector<codec::Datatype> datatypes;
  for (const std::vector<float>& table : centroids) datatypes.push_back(codec::make_datatype(table));
  const auto sum = base::blocked_sum<QuantisedMoments>(
      source.num_chunks(), 1, threads, [&](std::int64_t index, std::int64_t) {
        const Chunk chunk = load_chunk(source, index);
        QuantisedMoments part{moments_of(chunk.points), {}};
        part.codes.resize(datatypes.size());
        for (std::size_t d = 0; d < datatypes.size(); ++d) {
          for (const double point : chunk.points)
            ++part.codes[d][codec::nearest_code(static_cast<float>(point), datatypes[d])];
        }
        return part;
      });
  std::vector<QNorm> norms(centroids.size());
  for (std::size_t i = 0; i < norms.size() && !sum.codes.empty(); ++i) {
    const Moments quantised = moments_of_codes(sum.codes[i], datatypes[i]);
    if (!(quantised.deviation() > 0)) continue;
    norms[i].scale = sum.exact.deviation() / quantised.deviation();
    norms[i].offset = sum.exact.mean - quantised.mean * norms[i].scale;
  }
  return norms;
}

double objective_of(const kmeans::PointSource<double>& source, std::span<const float> centroids,
                    int threads) {
  const codec::Datatype datatype = codec::make_datatype(centroids);
  return base::blocked_sum<double>(source.num_chunks(), 1, threads, [&](std::int64_t index, std::int64_t) {
    const Chunk chunk = load_chunk(source, index);
    double sum = 0;
    for (std::size_t i = 0; i < chunk.points.size(); ++i) {
      const double error = static_cast<double>(chunk.points[i]) -
                           static_cast<double>(nearest_level(chunk.points[i], datatype));
      sum += chunk.weights[i] * error * error;
    }
    return sum;
  });
}

}  // namespace kvcal::calib
