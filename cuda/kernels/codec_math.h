// cuda/kernels/codec_math.h: the arithmetic of quantising, written once for host and device: both give the same bits.
//
// All of it is float32, each operation rounded to nearest by itself (rn), never fused: on the device by the
// _rn intrinsics, on the host because kvcal::kernels compiles what includes it with -ffp-contract=off. Do not
// compile it with -ffast-math or --use_fast_math. fp16 values are bit patterns in std::uint16_t, converted
// by cuda/kernels/float16.h, which is constexpr: the device compiles it, too, with nvcc's --expt-relaxed-constexpr.
//
//   normalise    u = rn(rn(x - z) * rn(1 / s)), s and z as stored: rounded to fp16
//   code         the number of midpoints of neighbouring centroids that lie below u,
//                so that a tie takes the lower code
//   dequantise   rn(rn(level * s) + z), level = centroid, or with Q-Norm rn(rn(centroid * scale) + offset)
#pragma once

#include <cstdint>

#include "cuda/kernels/float16.h"

namespace kvcal::codec {

/// The most centroids of a datatype: 4 bits.
inline constexpr int kMaxCentroids = 16;

/// A datatype as quantising uses it, flat so that a kernel takes it by value.
struct Datatype {
  int bits = 0;                          ///< 2, 3 or 4
  float midpoints[kMaxCentroids - 1]{};  ///< [2^bits - 1], ascending: rn(rn(centroid + next centroid) / 2)
  float levels[kMaxCentroids]{};         ///< [2^bits]: what a code dequantises to, in units of the range
};

/// How a channel or a vector is normalised, as stored: two fp16 bit patterns.
struct Affine {
  std::uint16_t scale = 0;  ///< the range s = (upper - lower) / 2
  std::uint16_t zero = 0;   ///< z = (upper + lower) / 2
  friend bool operator==(const Affine&, const Affine&) = default;
};

KVCAL_HOST_DEVICE float add_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

KVCAL_HOST_DEVICE float multiply_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

KVCAL_HOST_DEVICE float divide_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

/// Range and zero of a pair of thresholds, rounded to fp16; infinite there where they overflow
/// (see is_finite_half()).
KVCAL_HOST_DEVICE Affine affine_of(float lower, float upper) {
  return {codec::float_to_half(multiply_rn(add_rn(upper, -lower), 0.5F)),
          codec::float_to_half(multiply_rn(add_rn(upper, lower), 0.5F))};
}

/// Neither infinity nor NaN.
KVCAL_HOST_DEVICE bool is_finite_half(std::uint16_t bits) {
  return (bits & 0x7c00U) != 0x7c00U;
}

/// rn(1 / s); 0 for s = 0, so that everything normalises to 0 there and dequantises to z.
KVCAL_HOST_DEVICE float inverse_scale(float scale) {
  return scale > 0.0F ? divide_rn(1.0F, scale) : 0.0F;
}

KVCAL_HOST_DEVICE float normalise(float x, float zero, float inverse) {
  return multiply_rn(add_rn(x, -zero), inverse);
}

/// The code of the centroid nearest to u; NaN gives 0.
KVCAL_HOST_DEVICE unsigned nearest_code(float u, const Datatype& datatype) {
  unsigned code = 0;
  const int midpoints = (1 << datatype.bits) - 1;
  for (int i = 0; i < midpoints; ++i) code += u > datatype.midpoints[i] ? 1U : 0U;
  return code;
}

KVCAL_HOST_DEVICE float dequantise(unsigned code, float scale, float zero, const Datatype& datatype) {
  return add_rn(multiply_rn(datatype.levels[code], scale), zero);
}

}  // namespace kvcal::codec
