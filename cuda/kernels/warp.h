// cuda/kernels/warp.h: the warp that a kernel's body is written for, so that the same source runs on a GPU and, lane by
// lane, on a CPU.
//
// A body is a template over a Warp and steps through phases:
//
//   typename Warp::template PerLane<float> x;
//   warp.each([&](unsigned lane) { x[lane] = row[lane]; });     // what each lane does by itself, branches included
//   const std::uint32_t mask = warp.ballot(big);                // where lanes meet; the result is the same in all
//   warp.sync();                                                // before others read what a lane wrote to memory
//
// Between phases, code is the same for all lanes: its variables and branches must not depend on the lane. Within a
// phase no lane may read what another writes. DeviceWarp (warp_device.h) runs a phase once, as the lane that it is;
// LockstepWarp (warp_lockstep.h) runs it for lane 0 to 31 in order, or in the reverse order: a body whose result
// depends on that has a race.
//
// What both offer, beside each() and sync(), for PerLane<std::uint32_t> (and bool in ballot):
//   ballot(flags)            bit l: whether lane l's flag is set
//   broadcast(x, lane)       lane's x, 0 <= lane < 32; any type of 4 bytes
//   reduce_min, reduce_max, reduce_add   over all lanes
//   count(counter, more)     adds to a counter in memory, once; `more` is the same in all lanes
#pragma once

#include <bit>
#include <cstdint>

#include "cuda/kernels/codec_math.h"

/// What is a template over a Warp: nvcc compiles it for the device alone.
#ifdef __CUDACC__
#define KVCAL_WARP_BODY __device__ __forceinline__
#else
#define KVCAL_WARP_BODY inline
#endif

namespace kvcal::codec {

/// The set bits of a mask. (std::popcount and std::countr_zero are not for the device.)
KVCAL_HOST_DEVICE unsigned count_bits(std::uint32_t mask) {
#ifdef __CUDA_ARCH__
  return static_cast<unsigned>(__popc(mask));
#else
  return static_cast<unsigned>(std::popcount(mask));
#endif
}

/// The lowest set bit's place; mask != 0.
KVCAL_HOST_DEVICE unsigned lowest_bit(std::uint32_t mask) {
#ifdef __CUDA_ARCH__
  return static_cast<unsigned>(__ffs(static_cast<int>(mask)) - 1);
#else
  return static_cast<unsigned>(std::countr_zero(mask));
#endif
}

}  // namespace kvcal::codec
