#include "calib/fit/weight_histogram.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>

#include "base/parallel.h"
#include "formats/codebook.h"

namespace kvcal::calib {
namespace {

struct BinWeights {
  std::array<double, formats::kHistogramBins> weights{};
  BinWeights& operator+=(const BinWeights& other) {
    for (std::size_t bin = 0; bin < weights.size(); ++bin) weights[bin] += other.weights[bin];
    return *this;
  }
};

std::size_t bin_of(double point) {
  const double place = (point + 1) / 2 * formats::kHistogramBins;
  return static_cast<std::size_t>(std::clamp(place, 0.0, formats::kHistogramBins - 1.0));
}

}  // namespace

std::vector<float> weight_histogram(const kmeans::PointSource<double>& source, int threads) {
  const auto sum =
      base::blocked_sum<BinWeights>(source.num_chunks(), 1, threads, [&](std::int64_t chunk, std::int64_t) {
        std::vector<double> points, weights;
        source.load(chunk, points, weights);
        BinWeights part;
        for (std::size_t i = 0; i < points.size(); ++i) part.weights[bin_of(points[i])] += weights[i];
        return part;
      });
  const double total = std::accumulate(sum.weights.begin(), sum.weights.end(), 0.0);
  std::vector<float> shares(sum.weights.size());
  if (!(total > 0)) return shares;
  for (std::size_t bin = 0; bin < shares.size(); ++bin)
    shares[bin] = static_cast<float>(sum.weights[bin] / total);
  return shares;
}

}  // namespace kvcal::calib
