// cuda/kernels/float16.h: fp16 (IEEE 754 binary16) and bf16 as bit patterns, converted with round to nearest even, on
// host and device.
//
// Values are held as std::uint16_t: files store them so, and no compiler type is needed. NaN stays NaN, values beyond
// the largest finite one become infinity, denormals are exact.
#pragma once

#include <bit>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define KVCAL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define KVCAL_HOST_DEVICE inline
#endif

/// Before a loop whose body indexes what should stay in registers; before one that is rare or long, and stays a loop. g++
/// knows no such pragma.
#ifdef __CUDA_ARCH__
#define KVCAL_UNROLL _Pragma("unroll")
#define KVCAL_ROLLED _Pragma("unroll 1")
#else
#define KVCAL_UNROLL
#define KVCAL_ROLLED
#endif

namespace kvcal::codec {

/// The largest finite fp16 value.
inline constexpr float kHalfMax = 65504.0F;

KVCAL_HOST_DEVICE constexpr std::uint32_t float_bits(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  return std::bit_cast<std::uint32_t>(value);
#endif
}

KVCAL_HOST_DEVICE constexpr float bits_float(std::uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

[[nodiscard]] KVCAL_HOST_DEVICE constexpr float bfloat16_to_float(std::uint16_t bits) {
  return bits_float(static_cast<std::uint32_t>(bits) << 16);
}

[[nodiscard]] KVCAL_HOST_DEVICE constexpr std::uint16_t float_to_bfloat16(float value) {
#ifdef __CUDA_ARCH__
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));  // a NaN is another NaN than the host's
#else
  const std::uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  const std::uint32_t rounding = 0x7fffU + ((bits >> 16) & 1U);
  return static_cast<std::uint16_t>((bits + rounding) >> 16);
#endif
}

[[nodiscard]] KVCAL_HOST_DEVICE constexpr float half_to_float(std::uint16_t bits) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(bits));
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fU;
  const std::uint32_t mantissa = bits & 0x3ffU;
  if (exponent == 31) return bits_float(sign | 0x7f800000U | (mantissa << 13));
  if (exponent == 0) {
    // A denormal is mantissa * 2^-24, exact in float.
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  return bits_float(sign | ((exponent + 112U) << 23) | (mantissa << 13));
#endif
}

[[nodiscard]] KVCAL_HOST_DEVICE constexpr std::uint16_t float_to_half(float value) {
#ifdef __CUDA_ARCH__
  return __half_as_ushort(__float2half_rn(value));  // a NaN is another NaN than the host's
#else
  const std::uint32_t bits = float_bits(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<std::uint16_t>(sign | 0x7e00U);
  if (magnitude >= 0x477ff000U) return static_cast<std::uint16_t>(sign | 0x7c00U);  // 65520 and beyond
  if (magnitude < 0x38800000U) {
    // Below 2^-14 the result is a multiple of 2^-24. Adding 0.5 aligns the float's unit in the last place to
    // that, so the addition itself rounds to nearest even.
    const float aligned = bits_float(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (float_bits(aligned) - 0x3f000000U));
  }
  const std::uint32_t rounding = 0xfffU + ((magnitude >> 13) & 1U);
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000U + rounding) >> 13));
#endif
}

}  // namespace kvcal::codec
