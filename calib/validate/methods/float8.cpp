// E4M3 without scales: what vLLM stores with kv_cache_dtype fp8 where the checkpoint brings no scales.
//
// The codebook has no calibration for a scale yet, so it is 1.0 for every tensor: a number beyond 448 is
// stored as 448, one up to 2^-10 as 0. Keys are taken after RoPE. The format is OCP's (8-bit Floating Point
// Specification OFP8, revision 1.0): 1 sign bit, 4 of exponent with bias 7, 3 of mantissa, denormals, no
// infinity, and NaN only where all bits after the sign are set.
#include <algorithm>
#include <bit>
#include <cstddef>

#include "calib/validate/cache_method.h"

namespace kvcal::calib {

MethodFamily float8_methods();

namespace {

constexpr const char* kName = "fp8";

constexpr std::uint32_t kLargestE4m3 = 0x7e;  // 448
constexpr std::uint32_t kNanE4m3 = 0x7f;

/// Round to nearest even; saturates to the largest finite value; NaN stays NaN.
constexpr std::uint8_t float_to_e4m3(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 24) & 0x80U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<std::uint8_t>(sign | kNanE4m3);
  if (magnitude < 0x3c800000U) {
    // Below 2^-6 the result is a multiple of 2^-9. Adding 2^14 aligns the float's unit in the last place to
    // that, so the addition itself rounds to nearest even.
    const float aligned = std::bit_cast<float>(magnitude) + 0x1p14F;
    return static_cast<std::uint8_t>(
        sign | (std::bit_cast<std::uint32_t>(aligned) - std::bit_cast<std::uint32_t>(0x1p14F)));
  }
  // The exponent's bias goes from 127 to 7, the mantissa loses its last 20 bits.
  const std::uint32_t rounding = 0x7ffffU + ((magnitude >> 20) & 1U);
  const std::uint32_t rounded = (magnitude - (120U << 23) + rounding) >> 20;
  return static_cast<std::uint8_t>(sign | std::min(rounded, kLargestE4m3));
}

constexpr float e4m3_to_float(std::uint8_t code) {
  const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80U) << 24;
  const std::uint32_t magnitude = code & 0x7fU;
  if (magnitude == kNanE4m3) return std::bit_cast<float>(sign | 0x7fc00000U);
  if (magnitude < 8) {
    const float denormal = static_cast<float>(magnitude) * 0x1p-9F;
    return sign != 0 ? -denormal : denormal;
  }
  return std::bit_cast<float>(sign | ((magnitude << 20) + (120U << 23)));
}

class Float8Storage final : public TensorStorage {
 public:
  explicit Float8Storage(const formats::CachedTensor& tensor)
      : point_(point_after_rope(tensor)), channels_(tensor.channels()) {}

  [[nodiscard]] fisher::CachePoint point() const override { return point_; }

  [[nodiscard]] bool by_token() const override { return true; }

  // In place: each number is a byte of its own.
  StorageUse store(std::int64_t /*first*/, std::span<const float> x, std::span<float> read) const override {
    for (std::size_t i = 0; i < x.size(); ++i) read[i] = e4m3_to_float(float_to_e4m3(x[i]));
    StorageUse use;
    use.values = static_cast<std::int64_t>(x.size());
    use.bytes = static_cast<std::int64_t>(x.size() * sizeof(std::uint8_t));
    return use;
  }

  [[nodiscard]] std::int64_t expected_bytes(std::int64_t tokens) const override { return tokens * channels_; }

 private:
  fisher::CachePoint point_;
  std::int64_t channels_;
};

class Float8 final : public CacheMethod {
 public:
  [[nodiscard]] std::unique_ptr<TensorStorage> storage(int /*layer*/,
                                                       const formats::CachedTensor& tensor) const override {
    return std::make_unique<Float8Storage>(tensor);
  }
};

std::unique_ptr<CacheMethod> make(std::string_view name, const formats::Codebook* /*codebook*/) {
  return name == kName ? std::make_unique<Float8>() : nullptr;
}

std::vector<std::string> served(const formats::Codebook* /*codebook*/) {
  return {kName};
}

std::vector<std::string> by_default(const formats::Codebook* /*codebook*/) {
  return {};
}

}  // namespace

MethodFamily float8_methods() {
  return {{kName, "E4M3 with a scale of 1.0, as vLLM's kv_cache_dtype fp8 without scales; keys after RoPE"},
          make,
          served,
          by_default};
}

}  // namespace kvcal::calib
