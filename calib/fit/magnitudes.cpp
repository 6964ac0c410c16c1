#include "calib/fit/magnitudes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "base/parallel.h"

namespace kvcal::calib {
namespace {

constexpr std::size_t kBins = 4096;
// Weights are kept in parts of so many bins.
constexpr std::size_t kTogether = 8;
constexpr std::size_t kParts = kBins / kTogether;
// Thresholds that are tried: the largest magnitude times kSmallest to 1, in equal steps.
constexpr int kThresholds = 40;
constexpr float kSmallest = 0.22F;
// Tokens of a head that are read together.
constexpr std::int64_t kTokensAtOnce = 256;

// To the nearest integer, ties to even, |x| < 2^22: without a call, so that loops of it become vectors.
float nearest_integer(float x) {
  constexpr float kShift = 0x1.8p23F;
  return (x + kShift) - kShift;
}

// 1.mmm times 2^e down to 2^-6, then multiples of 2^-9; |x| <= 448.
float nearest_e4m3(float x) {
  const int exponent = static_cast<int>(std::bit_cast<std::uint32_t>(x) >> 23 & 0xff) - 127;
  const int shift = std::max(exponent, -6) - 3;
  const auto step = std::bit_cast<float>(static_cast<std::uint32_t>(127 + shift) << 23);
  const auto steps = std::bit_cast<float>(static_cast<std::uint32_t>(127 - shift) << 23);  // 1 / step
  return nearest_integer(x * steps) * step;
}

template <formats::ScaledType type>
float rounded(float x, float threshold) {
  constexpr bool kFloat = type == formats::ScaledType::fp8;
  constexpr float kCodes = kFloat ? 448.0F : type == formats::ScaledType::int8 ? 128.0F : 8.0F;
  constexpr float kLargest = kFloat ? kCodes : kCodes - 1;
  const float scaled = std::min(std::max(x * (kCodes / threshold), -kCodes), kCodes);
  const float code = kFloat ? nearest_e4m3(scaled) : std::min(nearest_integer(scaled), kLargest);
  return code * (threshold / kCodes);
}

template <formats::ScaledType type>
float error_sum(const std::vector<float>& numbers, const std::vector<float>& weights, float threshold) {
  float sum = 0;
  const float* const x = numbers.data();
  const float* const w = weights.data();
  const std::size_t count = numbers.size();
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < count; ++i) {
    const float difference = rounded<type>(x[i], threshold) - x[i];
    sum += w[i] * difference * difference;
  }
  return sum;
}

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
      : largest_(largest),
        bins_per_unit_(largest > 0 ? static_cast<float>(kBins) / largest : 0),
        counts_(kBins),
        weights_(2 * kParts) {}

  void add(float number, float weight) {
    const float magnitude = std::abs(number);
    const std::size_t bin = bin_of(magnitude);
    ++counts_[bin];
    Weight& part = weights_[bin / kTogether + (number < 0 ? kParts : 0)];
    part.sum += static_cast<double>(weight);
    part.moment += static_cast<double>(weight) * static_cast<double>(magnitude);
  }
  /// Each bin and part of another, of no larger magnitudes, as one number in its middle.
  void add(const MagnitudeHistogram& other) {
    const float bin_width = other.largest_ / static_cast<float>(kBins);
    for (std::size_t bin = 0; bin < kBins; ++bin)
      counts_[bin_of((static_cast<float>(bin) + 0.5F) * bin_width)] += other.counts_[bin];
    for (std::size_t part = 0; part < 2 * kParts; ++part) {
      const Weight& weight = other.weights_[part];
      if (!(weight.sum > 0)) continue;
      const std::size_t to = bin_of(static_cast<float>(weight.moment / weight.sum)) / kTogether;
      weights_[to + (part < kParts ? 0 : kParts)] += weight;
    }
  }
  /// What was added as positive numbers stands for either sign alike.
  void spread_signs() {
    for (std::size_t part = 0; part < kParts; ++part) {
      weights_[part].sum /= 2, weights_[part].moment /= 2;
      weights_[part + kParts] = weights_[part];
    }
  }

  void append_to(formats::MagnitudeGroup& group) const {
    for (const double level : formats::kMagnitudeLevels) group.quantiles.push_back(quantile(level));
    double total = 0;
    for (const Weight& part : weights_) total += part.sum;
    std::vector<float> numbers, weights;
    for (std::size_t part = 0; part < 2 * kParts; ++part) {
      if (!(weights_[part].sum > 0)) continue;
      const double magnitude = weights_[part].moment / weights_[part].sum;
      numbers.push_back(static_cast<float>(part < kParts ? magnitude : -magnitude));
      weights.push_back(static_cast<float>(weights_[part].sum / total));
    }
    using formats::ScaledType;
    group.best.push_back(best_threshold(numbers, weights, error_sum<ScaledType::int8>));
    group.best.push_back(best_threshold(numbers, weights, error_sum<ScaledType::int4>));
    group.best.push_back(best_threshold(numbers, weights, error_sum<ScaledType::fp8>));
  }

 private:
  [[nodiscard]] std::size_t bin_of(float magnitude) const {
    return std::min(static_cast<std::size_t>(magnitude * bins_per_unit_), kBins - 1);
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

  template <typename Error>
  [[nodiscard]] float best_threshold(const std::vector<float>& numbers, const std::vector<float>& weights,
                                     const Error& error) const {
    if (largest_ == 0) return 0;
    float best = largest_, least = error(numbers, weights, best);
    for (int i = 0; i + 1 < kThresholds; ++i) {
      const float share = kSmallest + (1 - kSmallest) * static_cast<float>(i) / (kThresholds - 1);
      const float threshold = share * largest_;
      const float found = error(numbers, weights, threshold);
      if (found < least) least = found, best = threshold;
    }
    return best;
  }

  float largest_ = 0, bins_per_unit_ = 0;
  std::vector<std::int64_t> counts_;
  std::vector<Weight> weights_;  // [parts] of positive numbers, then of negative ones
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
  /// Whether what it reads are lengths, which may turn to either side.
  [[nodiscard]] bool lengths() const { return kind_ == Kind::envelope; }

  void read_numbers(int head, Range tokens, std::vector<float>& numbers) const {
    numbers.resize(static_cast<std::size_t>(tokens.size() * dim_));
    numbers_.read_x(tokens, channels_of(head), numbers);
    if (!lengths()) return;
    for_each_pair(numbers, [](float& a, float& b) { a = b = std::sqrt(a * a + b * b); });
  }
  void read_weights(int head, Range tokens, std::vector<float>& weights) const {
    weights.assign(static_cast<std::size_t>(tokens.size() * dim_), 1.0F);
    if (!weights_.has_gradients()) return;
    weights_.read_gradients(tokens, channels_of(head), weights);
    for (float& weight : weights) weight *= kGradientScale, weight *= weight;
    if (kind_ != Kind::cached) for_each_pair(weights, [](float& a, float& b) { a = b = (a + b) / 2; });
  }

 private:
  // Squares of small gradients would underflow; only their proportions matter.
  static constexpr float kGradientScale = 0x1p40F;

  [[nodiscard]] Range channels_of(int head) const {
    return {std::int64_t{head} * dim_, std::int64_t{head + 1} * dim_};
  }
  // The channels that RoPE turns together, of each token.
  template <typename Change>
  void for_each_pair(std::vector<float>& values, const Change& change) const {
    const auto half = static_cast<std::size_t>(dim_ / 2), dim = static_cast<std::size_t>(dim_);
    for (std::size_t token = 0; token < values.size(); token += dim)
      for (std::size_t c = token; c < token + half; ++c) change(values[c], values[c + half]);
  }

  CapturedTokens numbers_, weights_;
  std::int64_t dim_;
  Kind kind_;
};

/// Calls visit(tokens) for all tokens of a reader, some at a time.
template <typename Visit>
void visit_tokens(const HeadReader& reader, const Visit& visit) {
  for (std::int64_t begin = 0; begin < reader.tokens(); begin += kTokensAtOnce)
    visit(Range{begin, std::min(reader.tokens(), begin + kTokensAtOnce)});
}

void find_largest(const HeadReader& reader, int head, std::span<float> largest) {
  std::vector<float> numbers;
  visit_tokens(reader, [&](Range tokens) {
    reader.read_numbers(head, tokens, numbers);
    for (std::size_t token = 0; token < numbers.size(); token += largest.size()) {
      for (std::size_t c = 0; c < largest.size(); ++c)
        largest[c] = std::max(largest[c], std::abs(numbers[token + c]));
    }
  });
}

/// Of one head: its channels' and its own, and its part of the tensor's histogram.
struct HeadMagnitudes {
  formats::MagnitudeGroup channels, head;
  MagnitudeHistogram part;
};

HeadMagnitudes head_magnitudes(const HeadReader& reader, int head, std::span<const float> largest,
                               float largest_of_all) {
  std::vector<MagnitudeHistogram> channels(largest.begin(), largest.end());
  std::vector<float> numbers, weights;
  visit_tokens(reader, [&](Range tokens) {
    reader.read_numbers(head, tokens, numbers);
    reader.read_weights(head, tokens, weights);
    for (std::size_t token = 0; token < numbers.size(); token += channels.size()) {
      for (std::size_t c = 0; c < channels.size(); ++c)
        channels[c].add(numbers[token + c], weights[token + c]);
    }
  });
  HeadMagnitudes found{{}, {}, MagnitudeHistogram(largest_of_all)};
  MagnitudeHistogram whole(*std::ranges::max_element(largest));
  for (MagnitudeHistogram& channel : channels) {
    if (reader.lengths()) channel.spread_signs();
    channel.append_to(found.channels);
    whole.add(channel);
    found.part.add(channel);
  }
  whole.append_to(found.head);
  return found;
}

void append(formats::MagnitudeGroup& to, const formats::MagnitudeGroup& from) {
  to.quantiles.insert(to.quantiles.end(), from.quantiles.begin(), from.quantiles.end());
  to.best.insert(to.best.end(), from.best.begin(), from.best.end());
}

formats::Magnitudes magnitudes_of(const CapturedTensor& tensor, const HeadReader& reader, int threads) {
  const auto heads = static_cast<std::size_t>(tensor.tensor.heads);
  const auto dim = static_cast<std::size_t>(tensor.tensor.dim);
  std::vector<float> largest(heads * dim);
  base::parallel_for(tensor.tensor.heads, threads, [&](std::int64_t head) {
    find_largest(reader, static_cast<int>(head),
                 std::span(largest).subspan(static_cast<std::size_t>(head) * dim, dim));
  });
  const float largest_of_all = *std::ranges::max_element(largest);
  std::vector<HeadMagnitudes> parts(heads);
  base::parallel_for(tensor.tensor.heads, threads, [&](std::int64_t head) {
    const auto at = static_cast<std::size_t>(head);
    parts[at] = head_magnitudes(reader, static_cast<int>(head), std::span(largest).subspan(at * dim, dim),
                                largest_of_all);
  });
  formats::Magnitudes found;
  MagnitudeHistogram all(largest_of_all);
  for (const HeadMagnitudes& part : parts) {
    append(found.channel, part.channels);
    append(found.head, part.head);
    all.add(part.part);
  }
  all.append_to(found.tensor);
  return found;
}

}  // namespace

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
