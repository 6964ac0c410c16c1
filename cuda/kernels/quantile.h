// cuda/kernels/quantile.h: quantiles by linear interpolation, the same bits on host and device.
#pragma once

#include "cuda/kernels/float16.h"

namespace kvcal::codec {

/// Where a quantile of n sorted numbers lies: `fraction` of the way from number `below` to the next.
struct QuantilePlace {
  unsigned below = 0;
  double fraction = 0;
};

/// Of linear interpolation. n >= 1, 0 <= q <= 1.
inline QuantilePlace quantile_place(double q, unsigned n) {
  const double position = q * (n - 1);
  unsigned below = static_cast<unsigned>(position);
  if (below > n - 1) below = n - 1;
  const double fraction = position - below;
  return {below, below + 1 < n && fraction > 0 ? fraction : 0.0};
}

KVCAL_HOST_DEVICE float between(float low, float high, double fraction) {
#ifdef __CUDA_ARCH__
  return fraction <= 0
             ? low
             : __double2float_rn(__dadd_rn(low, __dmul_rn(fraction, __dadd_rn(high, -double{low}))));
#else
  return fraction <= 0 ? low : static_cast<float>(low + fraction * (double{high} - low));
#endif
}

}  // namespace kvcal::codec
