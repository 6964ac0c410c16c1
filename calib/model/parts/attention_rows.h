// calib/model/parts/attention_rows.h: what attention does with a row of logits, in loops that the compiler
// vectorises. Of blocked_attention.cpp alone.
#pragma once

#include <c10/util/BFloat16.h>

#include <bit>
#include <cstdint>
#include <limits>

// The loops over a row of logits are compiled for AVX-512, which blocked_attention_serves asks for.
#if defined(__x86_64__)
#define KVCAL_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define KVCAL_AVX512
#endif

namespace kvcal::calib {

// e^x to 2e-7 of its size, NaN for NaN; 0 and infinity are 2^-126 and 2^126 here.
inline float exponential(float x) {
  float y = x * 1.44269504088896341F;
  y = y < -126.0F ? -126.0F : y;
  y = y > 126.0F ? 126.0F : y;
  // Added to this, a number is rounded to an integer, which then stands in the last bits.
  constexpr float kRounding = 12582912.0F;
  const float rounded = y + kRounding;
  const float part = y - (rounded - kRounding);
  // 2^part on [-1/2, 1/2]: the Taylor series of e^(part log 2).
  float sum = 1.5403530e-4F;
  sum = sum * part + 1.3333558e-3F;
  sum = sum * part + 9.6181291e-3F;
  sum = sum * part + 5.5504109e-2F;
  sum = sum * part + 2.4022651e-1F;
  sum = sum * part + 6.9314718e-1F;
  sum = sum * part + 1.0F;
  const std::uint32_t whole = std::bit_cast<std::uint32_t>(rounded) - std::bit_cast<std::uint32_t>(kRounding);
  return sum * std::bit_cast<float>((whole + 127) << 23);
}

inline void store(float x, float& to) {
  to = x;
}

// To the nearest, ties to even; NaN stays NaN.
inline void store(float x, c10::BFloat16& to) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  to.x = static_cast<std::uint16_t>(x == x ? rounded : 0x7FC0);
}

KVCAL_AVX512 inline float largest(const float* x, std::int64_t count) {
  float most = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : most)
  for (std::int64_t i = 0; i < count; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

// to[i] = e^(scale x[i] - shift); returns their sum.
template <typename T>
KVCAL_AVX512 inline float exponentials(const float* x, std::int64_t count, float scale, float shift, T* to) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) {
    const float e = exponential(scale * x[i] - shift);
    sum += e;
    store(e, to[i]);
  }
  return sum;
}

// What the gradient needs of two rows of logits: probabilities, and the logits' gradients.
KVCAL_AVX512 inline void gradient_row(float* logits, float* slopes, std::int64_t count, float scale,
                                      const float* log_sums, const float* means) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const float p = exponential(scale * logits[i] - log_sums[i]);
    slopes[i] = p * (slopes[i] - means[i]) * scale;
    logits[i] = p;
  }
}

template <typename T>
KVCAL_AVX512 inline void store_row(const float* x, std::int64_t count, T* to) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) store(x[i], to[i]);
}

// Two rows of numbers as one row of words.
KVCAL_AVX512 inline void interleave_rows(const float* upper, const float* lower, std::int64_t count,
                                         c10::BFloat16* to) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    store(upper[i], to[2 * i]);
    store(lower[i], to[2 * i + 1]);
  }
}

KVCAL_AVX512 inline void scale_row(float* x, std::int64_t count, float factor) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) x[i] *= factor;
}

}  // namespace kvcal::calib

#undef KVCAL_AVX512
