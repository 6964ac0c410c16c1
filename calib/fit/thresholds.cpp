#include "calib/fit/thresholds.h"

#include <algorithm>

#include "base/parallel.h"
#include "cuda/kernels/codec_math.h"
#include "cuda/kernels/float16.h"
#include "cuda/threshold_finder.h"

namespace kvcal::calib {
namespace {

// Numbers that one call of the parallel loop works on, at least.
constexpr std::int64_t kNumbersAtOnce = 16384;

}  // namespace

std::vector<Thresholds> find_thresholds(const CapturedTokens& x, const PairLayout& layout,
                                        std::span<const double> fractions, int threads) {
  const std::int64_t pairs = layout.count(x.tokens());
  const auto size = static_cast<std::size_t>(pairs);
  std::vector<Thresholds> result(fractions.size(), {std::vector<float>(size), std::vector<float>(size)});
  const std::int64_t numbers = layout.by_channel() ? x.tokens() : layout.channels / layout.per_token;
  const std::int64_t at_once = std::max<std::int64_t>(1, kNumbersAtOnce / std::max<std::int64_t>(1, numbers));
  base::parallel_for((pairs + at_once - 1) / at_once, threads, [&](std::int64_t block) {
    std::vector<float> values(static_cast<std::size_t>(numbers));
    std::vector<codec::ThresholdFinder> finders;
    for (const double fraction : fractions) finders.emplace_back(values.size(), fraction);
    for (std::int64_t pair = block * at_once; pair < std::min(pairs, (block + 1) * at_once); ++pair) {
      x.read_x(layout.tokens_of(pair, x.tokens()), layout.channels_of(pair), values);
      for (std::size_t f = 0; f < finders.size(); ++f) {
        const codec::ThresholdPair found = finders[f].find(values);
        result[f].lower[static_cast<std::size_t>(pair)] = found.lower;
        result[f].upper[static_cast<std::size_t>(pair)] = found.upper;
      }
    }
  });
  return result;
}

Normaliser normaliser(float lower, float upper) {
  Normaliser result;
  result.zero = (static_cast<double>(upper) + static_cast<double>(lower)) / 2;
  result.range = (static_cast<double>(upper) - static_cast<double>(lower)) / 2;
  if (codec::float_to_half(static_cast<float>(result.range)) == 0) result.range = 0;
  return result;
}

bool is_storable(const Normaliser& normal) {
  return codec::is_finite_half(codec::float_to_half(static_cast<float>(normal.range))) &&
         codec::is_finite_half(codec::float_to_half(static_cast<float>(normal.zero)));
}

}  // namespace kvcal::calib
