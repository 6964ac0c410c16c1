// KIVI (Liu et al. 2024, arXiv 2402.02750): keys in groups along the tokens of a channel, values in groups
// along the channels of a token, uniform codes from a group's minimum on, the newest tokens in fp16. Keys are
// taken after RoPE. Scale and minimum are used as stored, rounded to fp16; ties round to even.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "base/error.h"
#include "calib/validate/cache_method.h"
#include "cuda/bit_pack.h"
#include "cuda/kernels/codec_math.h"
#include "cuda/kernels/float16.h"

namespace kvcal::calib {

MethodFamily kivi_methods();

namespace {

using formats::ThresholdScope;

/// Tokens of a key's group, channels of a value's (the paper's G).
constexpr std::size_t kGroup = 32;
/// The paper's R: keys are quantised when so many have gathered, values when so many newer ones are there.
constexpr std::size_t kResidual = 128;

struct KiviName {
  const char* name;
  int bits;
};

constexpr std::array<KiviName, 2> kNames{{{"kivi2", 2}, {"kivi4", 4}}};

std::uint16_t checked_half(float value, std::size_t token, std::size_t channel, const char* what) {
  const std::uint16_t half = codec::float_to_half(value);
  if (!codec::is_finite_half(half)) {
    throw base::InvalidInput(base::concat("token ", token, ", channel ", channel, ": the ", what, " ", value,
                                          " overflows fp16, whose largest is ", codec::kHalfMax));
  }
  return half;
}

/// Where the groups of a tensor lie: numbered along the channels first, then along the tokens.
struct Grouping {
  std::size_t token_step, channel_step;  // of one group
  std::size_t per_row;                   // groups side by side

  Grouping(ThresholdScope scope, std::size_t channels)
      : token_step(scope == ThresholdScope::channel ? kGroup : 1),
        channel_step(scope == ThresholdScope::channel ? 1 : kGroup),
        per_row((channels + channel_step - 1) / channel_step) {}

  [[nodiscard]] std::size_t count(std::size_t tokens) const { return tokens / token_step * per_row; }
  [[nodiscard]] std::size_t of(std::size_t token, std::size_t channel) const {
    return token / token_step * per_row + channel / channel_step;
  }
};

/// As a group is stored. In its code 0 reads as zero, each further one as scale more.
struct Group {
  std::uint16_t scale = 0;  // fp16 bits
  std::uint16_t zero = 0;
};

class KiviStorage final : public TensorStorage {
 public:
  KiviStorage(int bits, const formats::CachedTensor& tensor)
      : bits_(bits), scope_(tensor.thresholds), channels_(static_cast<std::size_t>(tensor.channels())) {}

  [[nodiscard]] fisher::CachePoint point() const override {
    return scope_ == ThresholdScope::channel ? fisher::CachePoint::rotated : fisher::CachePoint::cached;
  }

  StorageUse store(std::int64_t /*first*/, std::span<const float> x, std::span<float> read) const override {
    const std::size_t tokens = x.size() / channels_;
    const std::size_t quantised = quantised_tokens(tokens) * channels_;
    StorageUse use;
    use.values = static_cast<std::int64_t>(x.size());
    use.bytes = static_cast<std::int64_t>(store_groups(x.first(quantised), read.first(quantised)) +
                                          (x.size() - quantised) * sizeof(std::uint16_t));
    for (std::size_t i = quantised; i < x.size(); ++i)
      read[i] = codec::half_to_float(checked_half(x[i], i / channels_, i % channels_, "number"));
    return use;
  }

  [[nodiscard]] std::int64_t expected_bytes(std::int64_t tokens) const override {
    const auto all = static_cast<std::size_t>(tokens);
    const std::size_t quantised = quantised_tokens(all);
    const std::size_t groups = Grouping(scope_, channels_).count(quantised);
    return static_cast<std::int64_t>(codec::packed_bytes(quantised * channels_, bits_) +
                                     groups * sizeof(Group) +
                                     (all - quantised) * channels_ * sizeof(std::uint16_t));
  }

 private:
  // Keys wait until a whole block of kResidual can be quantised, so that fewer than that are in fp16; of
  // values the newest kResidual always are.
  [[nodiscard]] std::size_t quantised_tokens(std::size_t tokens) const {
    return scope_ == ThresholdScope::channel ? tokens - tokens % kResidual
                                             : tokens - std::min(tokens, kResidual);
  }

  // What it takes. The codes of all tokens are one stream: 2 and 4 bits leave no gaps in it.
  std::size_t store_groups(std::span<const float> x, std::span<float> read) const {
    const Grouping grouping(scope_, channels_);
    const std::vector<Group> groups = find_groups(x, grouping);
    const std::vector<std::uint8_t> packed = codec::pack_codes(encode(x, grouping, groups), bits_);
    const std::vector<std::uint8_t> codes = codec::unpack_codes(packed, x.size(), bits_);
    for (std::size_t t = 0, i = 0; i < x.size(); ++t) {
      for (std::size_t c = 0; c < channels_; ++c, ++i) {
        const Group& group = groups[grouping.of(t, c)];
        read[i] = static_cast<float>(codes[i]) * codec::half_to_float(group.scale) +
                  codec::half_to_float(group.zero);
      }
    }
    return packed.size() + groups.size() * sizeof(Group);
  }

  [[nodiscard]] std::vector<Group> find_groups(std::span<const float> x, const Grouping& grouping) const {
    const std::size_t count = grouping.count(x.size() / channels_);
    std::vector<float> lower(count, std::numeric_limits<float>::infinity());
    std::vector<float> upper(count, -std::numeric_limits<float>::infinity());
    for (std::size_t t = 0, i = 0; i < x.size(); ++t) {
      for (std::size_t c = 0; c < channels_; ++c, ++i) {
        const std::size_t g = grouping.of(t, c);
        lower[g] = std::min(lower[g], x[i]);
        upper[g] = std::max(upper[g], x[i]);
      }
    }
    std::vector<Group> groups(count);
    for (std::size_t g = 0; g < count; ++g) {
      const std::size_t token = g / grouping.per_row * grouping.token_step;
      const std::size_t channel = g % grouping.per_row * grouping.channel_step;
      const float scale = (upper[g] - lower[g]) / static_cast<float>(largest_code());
      groups[g] = {checked_half(scale, token, channel, "scale of the group from here on"),
                   checked_half(lower[g], token, channel, "minimum of the group from here on")};
    }
    return groups;
  }

  [[nodiscard]] std::vector<std::uint8_t> encode(std::span<const float> x, const Grouping& grouping,
                                                 std::span<const Group> groups) const {
    std::vector<std::uint8_t> codes(x.size());
    const auto largest = static_cast<float>(largest_code());
    for (std::size_t t = 0, i = 0; i < x.size(); ++t) {
      for (std::size_t c = 0; c < channels_; ++c, ++i) {
        const Group& group = groups[grouping.of(t, c)];
        const float scale = codec::half_to_float(group.scale);
        // No step: every code reads as the minimum.
        if (scale == 0.0F) continue;
        // The rounding of zero and scale to fp16 can take x beyond either end.
        const float steps = std::nearbyint((x[i] - codec::half_to_float(group.zero)) / scale);
        codes[i] = static_cast<std::uint8_t>(std::clamp(steps, 0.0F, largest));
      }
    }
    return codes;
  }

  [[nodiscard]] int largest_code() const { return (1 << bits_) - 1; }

  int bits_;
  ThresholdScope scope_;
  std::size_t channels_;
};

class Kivi final : public CacheMethod {
 public:
  explicit Kivi(int bits) : bits_(bits) {}

  [[nodiscard]] std::unique_ptr<TensorStorage> storage(int /*layer*/,
                                                       const formats::CachedTensor& tensor) const override {
    return std::make_unique<KiviStorage>(bits_, tensor);
  }

 private:
  int bits_;
};

std::unique_ptr<CacheMethod> make(std::string_view name, const formats::Codebook* /*codebook*/) {
  for (const KiviName& known : kNames)
    if (name == known.name) return std::make_unique<Kivi>(known.bits);
  return nullptr;
}

std::vector<std::string> served(const formats::Codebook* /*codebook*/) {
  return {kNames[0].name, kNames[1].name};
}

std::vector<std::string> by_default(const formats::Codebook* /*codebook*/) {
  return {};
}

}  // namespace

MethodFamily kivi_methods() {
  return {{"kivi2, kivi4",
           "KIVI: keys after RoPE by channel, values by token, groups of 32, the newest 128 tokens in fp16"},
          make,
          served,
          by_default};
}

}  // namespace kvcal::calib
