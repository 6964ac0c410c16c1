#include "calib/fit/magnitudes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "base/parallel.h"

namespace kvcal::calib {
namespace {

constexpr std::size_t kBins = 4096;
// Errors are taken where the weight of so many of these parts together lies on average.
constexpr std::size_t kTogether = 4;
// Thresholds that are tried: the largest magnitude times kSmallest to 1, in equal steps.
constexpr int kThresholds = 40;
constexpr double kSmallest = 0.22;
// Tokens of a head that are read together.
constexpr std::int64_t kTokensAtOnce = 256;

/// The weight of some numbers, and its sum with their magnitudes.
struct Weight {
  double sum = 0, moment = 0;
  Weight& operator+=(const Weight& other) {
    sum += other.sum;
    moment += other.moment;
    return *this;
  }
};

/// Numbers and weights by magnitude, in equal parts of [0, largest].
class MagnitudeHistogram {
 public:
  MagnitudeHistogram() = default;
  explicit MagnitudeHistogram(float largest)
      : largest_(largest), counts_(kBins), above_(kBins / kTogether), below_(kBins / kTogether) {}

  /// Of the weight, `positive` is a positive number's.
  void add(float magnitude, double weight, double positive) {
    const std::size_t bin = bin_of(magnitude);
    ++counts_[bin];
    const auto moment = static_cast<double>(magnitude);
    above_[bin / kTogether] += {weight * positive, weight * positive * moment};
    below_[bin / kTogether] += {weight * (1 - positive), weight * (1 - positive) * moment};
  }
  MagnitudeHistogram& operator+=(const MagnitudeHistogram& other) {
    for (std::size_t bin = 0; bin < kBins; ++bin) counts_[bin] += other.counts_[bin];
    for (std::size_t part = 0; part < above_.size(); ++part) {
      above_[part] += other.above_[part];
      below_[part] += other.below_[part];
    }
    return *this;
  }

  void append_to(formats::MagnitudeGroup& group) const {
    for (const double level : formats::kMagnitudeLevels) group.quantiles.push_back(quantile(level));
    for (int type = 0; type < formats::kScaledTypes; ++type)
      group.best.push_back(best_threshold(static_cast<formats::ScaledType>(type)));
  }

 private:
  [[nodiscard]] std::size_t bin_of(float magnitude) const {
    if (largest_ == 0) return 0;
    const auto place = static_cast<std::size_t>(magnitude / largest_ * static_cast<float>(kBins));
    return std::min(place, kBins - 1);
  }

  [[nodiscard]] float quantile(double level) const {
    if (level == 1) return largest_;
    std::int64_t total = 0;
    for (const std::int64_t count : counts_) total += count;
    const double wanted = level * static_cast<double>(total);
    double below = 0;
    for (std::size_t bin = 0; bin < kBins; ++bin) {
      const auto count = static_cast<double>(counts_[bin]);
      if (below + count >= wanted && count > 0) {
        const double place = static_cast<double>(bin) + (wanted - below) / count;
        return static_cast<float>(place / static_cast<double>(kBins) * static_cast<double>(largest_));
      }
      below += count;
    }
    return largest_;
  }

  [[nodiscard]] static double error_of(const Weight& weight, double sign, double threshold,
                                       formats::ScaledType type) {
    if (!(weight.sum > 0)) return 0;
    const double x = sign * weight.moment / weight.sum;
    const double error = scaled_value(x, threshold, type) - x;
    return weight.sum * error * error;
  }

  [[nodiscard]] double error(double threshold, formats::ScaledType type) const {
    double sum = 0;
    // Codes reach one step further on the side of negative numbers.
    for (std::size_t part = 0; part < above_.size(); ++part)
      sum += error_of(above_[part], 1, threshold, type) + error_of(below_[part], -1, threshold, type);
    return sum;
  }

  [[nodiscard]] float best_threshold(formats::ScaledType type) const {
    if (largest_ == 0) return 0;
    double best = largest_, least = error(best, type);
    for (int i = 0; i + 1 < kThresholds; ++i) {
      const double share = kSmallest + (1 - kSmallest) * i / (kThresholds - 1);
      const double threshold = share * static_cast<double>(largest_);
      if (const double found = error(threshold, type); found < least) least = found, best = threshold;
    }
    return static_cast<float>(best);
  }

  float largest_ = 0;
  std::vector<std::int64_t> counts_;
  std::vector<Weight> above_, below_;  // of positive and negative numbers, kTogether parts in each
};

/// Which magnitudes of a tensor are meant.
enum class Kind { cached, rotated, envelope };

/// Some tokens of one head: numbers and weights, both [tokens, dim].
class HeadReader {
 public:
  HeadReader(const CapturedTensor& tensor, const CapturedTensor* rotated, Kind kind)
      : numbers_(kind == Kind::rotated ? *rotated : tensor, tensor.with_sinks()),
        weights_(tensor, tensor.with_sinks()),
        dim_(tensor.tensor.dim),
        kind_(kind) {}

  [[nodiscard]] std::int64_t tokens() const { return numbers_.tokens(); }
  /// Of a number's weight, what is a positive number's; a length may turn to either side.
  [[nodiscard]] double positive_share(float number) const {
    return kind_ == Kind::envelope ? 0.5 : number < 0 ? 0.0 : 1.0;
  }

  void read(int head, Range tokens, std::vector<float>& numbers, std::vector<float>& weights) const {
    const Range channels{std::int64_t{head} * dim_, std::int64_t{head + 1} * dim_};
    const auto count = static_cast<std::size_t>(tokens.size() * dim_);
    numbers.resize(count);
    weights.assign(count, 1.0F);
    numbers_.read_x(tokens, channels, numbers);
    if (weights_.has_gradients()) {
      weights_.read_gradients(tokens, channels, weights);
      for (float& weight : weights) weight *= kGradientScale, weight *= weight;
    }
    if (kind_ == Kind::cached) return;
    const auto half = static_cast<std::size_t>(dim_ / 2), dim = static_cast<std::size_t>(dim_);
    for (std::size_t token = 0; token < count; token += dim) {
      for (std::size_t c = token; c < token + half; ++c) {
        const float weight = (weights[c] + weights[c + half]) / 2;
        weights[c] = weights[c + half] = weight;
        if (kind_ == Kind::rotated) continue;
        const float length = std::hypot(numbers[c], numbers[c + half]);
        numbers[c] = numbers[c + half] = length;
      }
    }
  }

 private:
  // Squares of small gradients would underflow; only their proportions matter.
  static constexpr float kGradientScale = 0x1p40F;

  CapturedTokens numbers_, weights_;
  std::int64_t dim_;
  Kind kind_;
};

/// Calls visit(channel of the head, magnitude, weight, share of the weight that is positive) for all of a head's
/// numbers.
template <typename Visit>
void visit_head(const HeadReader& reader, int head, std::int64_t dim, const Visit& visit) {
  std::vector<float> numbers, weights;
  for (std::int64_t begin = 0; begin < reader.tokens(); begin += kTokensAtOnce) {
    const Range some{begin, std::min(reader.tokens(), begin + kTokensAtOnce)};
    reader.read(head, some, numbers, weights);
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      visit(i % static_cast<std::size_t>(dim), std::abs(numbers[i]), static_cast<double>(weights[i]),
            reader.positive_share(numbers[i]));
    }
  }
}

formats::Magnitudes magnitudes_of(const CapturedTensor& tensor, const HeadReader& reader, int threads) {
  const std::int64_t heads = tensor.tensor.heads, dim = tensor.tensor.dim;
  std::vector<float> largest(static_cast<std::size_t>(heads * dim));
  base::parallel_for(heads, threads, [&](std::int64_t head) {
    float* const of_head = largest.data() + head * dim;
    visit_head(reader, static_cast<int>(head), dim, [&](std::size_t c, float magnitude, double, double) {
      of_head[c] = std::max(of_head[c], magnitude);
    });
  });
  const float largest_of_all = *std::ranges::max_element(largest);
  std::vector<formats::MagnitudeGroup> channels(static_cast<std::size_t>(heads)), of_heads(channels.size());
  std::vector<MagnitudeHistogram> parts(channels.size());
  base::parallel_for(heads, threads, [&](std::int64_t head) {
    const float* const of_head = largest.data() + head * dim;
    std::vector<MagnitudeHistogram> by_channel(of_head, of_head + dim);
    MagnitudeHistogram whole(*std::max_element(of_head, of_head + dim)), part(largest_of_all);
    visit_head(reader, static_cast<int>(head), dim,
               [&](std::size_t c, float magnitude, double weight, double positive) {
                 by_channel[c].add(magnitude, weight, positive);
                 whole.add(magnitude, weight, positive);
                 part.add(magnitude, weight, positive);
               });
    const auto at = static_cast<std::size_t>(head);
    for (const MagnitudeHistogram& channel : by_channel) channel.append_to(channels[at]);
    whole.append_to(of_heads[at]);
    parts[at] = std::move(part);
  });
  formats::Magnitudes found;
  MagnitudeHistogram all(largest_of_all);
  for (std::size_t head = 0; head < channels.size(); ++head) {
    for (const auto& [to, from] :
         {std::pair{&found.channel, &channels[head]}, {&found.head, &of_heads[head]}}) {
      to->quantiles.insert(to->quantiles.end(), from->quantiles.begin(), from->quantiles.end());
      to->best.insert(to->best.end(), from->best.begin(), from->best.end());
    }
    all += parts[head];
  }
  all.append_to(found.tensor);
  return found;
}

// 1.mmm times 2^e down to 2^-6, then multiples of 2^-9; the largest is 448.
double nearest_e4m3(double x) {
  if (x == 0) return 0;
  const double step = std::ldexp(1.0, std::max(std::ilogb(x), -6) - 3);
  return std::clamp(std::nearbyint(x / step) * step, -448.0, 448.0);
}

}  // namespace

double scaled_value(double x, double threshold, formats::ScaledType type) {
  if (type == formats::ScaledType::fp8) {
    const double scale = threshold / 448;
    return nearest_e4m3(std::clamp(x / scale, -448.0, 448.0)) * scale;
  }
  const double codes = type == formats::ScaledType::int8 ? 128 : 8;
  const double scale = threshold / codes;
  return std::clamp(std::nearbyint(x / scale), -codes, codes - 1) * scale;
}

formats::TensorMagnitudes find_magnitudes(const CapturedTensor& tensor, const CapturedTensor* rotated,
                                          int threads) {
  const auto find = [&](Kind kind) {
    return magnitudes_of(tensor, HeadReader(tensor, rotated, kind), threads);
  };
  formats::TensorMagnitudes found{find(Kind::cached), {}, {}};
  if (rotated == nullptr) return found;
  found.rotated = find(Kind::rotated);
  found.envelope = find(Kind::envelope);
  return found;
}

}  // namespace kvcal::calib
