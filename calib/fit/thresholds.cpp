#include "calib/fit/thresholds.h"

#include <algorithm>

#include "base/float16.h"
#include "base/parallel.h"
#include "cuda/vector_codec.h"

namespace kvcal::calib {
namespace {

// Columns copied together: a cache line of floats, so that each line of the matrix is read once.
constexpr std::int64_t kColumnsAtOnce = 16;
// Rows that one call of the parallel loop works on.
constexpr std::int64_t kRowsAtOnce = 256;

// Both thresholds of every fraction from one copy of the values.
void pair_thresholds(std::span<float> values, std::span<const double> fractions, std::size_t index,
                     std::vector<Thresholds>& result) {
  for (std::size_t f = 0; f < fractions.size(); ++f) {
    result[f].lower[index] = codec::quantile(values, fractions[f] / 2);
    result[f].upper[index] = codec::quantile(values, 1 - fractions[f] / 2);
  }
}

std::vector<Thresholds> make_thresholds(std::size_t fractions, std::size_t pairs) {
  return std::vector<Thresholds>(fractions, Thresholds{std::vector<float>(pairs), std::vector<float>(pairs)});
}

}  // namespace

std::vector<Thresholds> channel_thresholds(const CapturedRows& rows, std::span<const double> fractions,
                                           int threads) {
  const std::int64_t channels = rows.channels();
  const auto count = static_cast<std::size_t>(rows.rows());
  std::vector<Thresholds> result = make_thresholds(fractions.size(), static_cast<std::size_t>(channels));
  const std::int64_t blocks = (channels + kColumnsAtOnce - 1) / kColumnsAtOnce;
  base::parallel_for(blocks, threads, [&](std::int64_t block) {
    const std::int64_t first = block * kColumnsAtOnce;
    const auto width = static_cast<std::size_t>(std::min(kColumnsAtOnce, channels - first));
    std::vector<float> columns(width * count);
    for (std::size_t r = 0; r < count; ++r) {
      const auto row = rows.x(static_cast<std::int64_t>(r)).subspan(static_cast<std::size_t>(first), width);
      for (std::size_t c = 0; c < width; ++c) columns[c * count + r] = row[c];
    }
    for (std::size_t c = 0; c < width; ++c) {
      pair_thresholds(std::span(columns).subspan(c * count, count), fractions,
                      static_cast<std::size_t>(first) + c, result);
    }
  });
  return result;
}

std::vector<Thresholds> row_thresholds(const CapturedRows& rows, int groups,
                                       std::span<const double> fractions, int threads) {
  const auto width = static_cast<std::size_t>(rows.channels() / groups);
  std::vector<Thresholds> result = make_thresholds(
      fractions.size(), static_cast<std::size_t>(rows.rows()) * static_cast<std::size_t>(groups));
  const std::int64_t blocks = (rows.rows() + kRowsAtOnce - 1) / kRowsAtOnce;
  base::parallel_for(blocks, threads, [&](std::int64_t block) {
    std::vector<float> values(width);
    const std::int64_t end = std::min(rows.rows(), (block + 1) * kRowsAtOnce);
    for (std::int64_t r = block * kRowsAtOnce; r < end; ++r) {
      for (int g = 0; g < groups; ++g) {
        const auto part = rows.x(r).subspan(static_cast<std::size_t>(g) * width, width);
        std::copy(part.begin(), part.end(), values.begin());
        pair_thresholds(values, fractions, static_cast<std::size_t>(r * groups + g), result);
      }
    }
  });
  return result;
}

Normaliser normaliser(float lower, float upper) {
  Normaliser result;
  result.zero = (static_cast<double>(upper) + static_cast<double>(lower)) / 2;
  result.range = (static_cast<double>(upper) - static_cast<double>(lower)) / 2;
  if (base::float_to_half(static_cast<float>(result.range)) == 0) result.range = 0;
  return result;
}

}  // namespace kvcal::calib
