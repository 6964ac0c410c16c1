// cuda/kernels/turn_row.h: a row of values that a warp holds, turned (rotation.h).
#pragma once

#include "cuda/kernels/lane_numbers.h"
#include "cuda/kernels/warp.h"
#include "cuda/kernels/warp_matrix.h"

namespace kvcal::codec {

/// Turns each block of a row in place; once more turns it back, but for rounding. Bit for bit as turn_hadamard() of
/// cuda/hadamard.h: sums and differences of channels 1, 2, 4, ... apart, first those of a lane, then those of two.
/// rotation.block > 0, a divisor of the row's 32 * kCount channels.
template <typename Warp, unsigned kCount>
KVCAL_WARP_BODY void turn_row(Warp& warp, const Rotation& rotation,
                              typename Warp::template PerLane<LaneNumbers<kCount>>& x) {
  warp.each([&](unsigned lane) {
    KVCAL_UNROLL
    for (unsigned step = 1; step < kCount; step *= 2) {
      if (step >= rotation.block) continue;
      KVCAL_UNROLL
      for (unsigned i = 0; i < kCount; ++i) {
        if ((i & step) != 0) continue;
        const float a = x[lane].x[i], b = x[lane].x[i + step];
        x[lane].x[i] = add_rn(a, b);
        x[lane].x[i + step] = add_rn(a, -b);
      }
    }
  });
  KVCAL_ROLLED
  for (unsigned distance = 1; distance * kCount < rotation.block; distance *= 2) {
    KVCAL_UNROLL
    for (unsigned i = 0; i < kCount; ++i) {
      typename Warp::template PerLane<float> own;
      warp.each([&](unsigned lane) { own[lane] = x[lane].x[i]; });
      const auto other = shuffle_xor(warp, own, distance);
      warp.each([&](unsigned lane) {
        x[lane].x[i] = add_rn(other[lane], (lane & distance) == 0 ? own[lane] : -own[lane]);
      });
    }
  }
  warp.each([&](unsigned lane) {
    KVCAL_UNROLL
    for (unsigned i = 0; i < kCount; ++i) x[lane].x[i] = multiply_rn(x[lane].x[i], rotation.scale);
  });
}

}  // namespace kvcal::codec
