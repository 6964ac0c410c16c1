// cuda/kernels/warp_device.h: the warp of warp.h on a GPU (sm_80 or later): this thread is one of its lanes. All 32 run; blocks are
// whole warps.
#pragma once

#include <cstdint>

#include "cuda/kernels/warp.h"

namespace kvcal::codec {

class DeviceWarp {
 public:
  /// A lane's own copy: the index is for the other warp.
  template <typename T>
  struct PerLane {
    T value{};
    __device__ __forceinline__ T& operator[](unsigned) { return value; }
    __device__ __forceinline__ const T& operator[](unsigned) const { return value; }
  };

  __device__ __forceinline__ DeviceWarp() : lane_(threadIdx.x % 32) {}

  template <typename Body>
  __device__ __forceinline__ void each(const Body& body) const {
    body(lane_);
  }
  __device__ __forceinline__ void sync() const { __syncwarp(); }

  __device__ __forceinline__ std::uint32_t ballot(const PerLane<bool>& flags) const {
    return __ballot_sync(kAll, flags.value);
  }
  template <typename T>
  __device__ __forceinline__ T broadcast(const PerLane<T>& x, unsigned lane) const {
    return __shfl_sync(kAll, x.value, static_cast<int>(lane));
  }
  __device__ __forceinline__ std::uint32_t reduce_min(const PerLane<std::uint32_t>& x) const {
    return __reduce_min_sync(kAll, x.value);
  }
  __device__ __forceinline__ std::uint32_t reduce_max(const PerLane<std::uint32_t>& x) const {
    return __reduce_max_sync(kAll, x.value);
  }
  __device__ __forceinline__ std::uint32_t reduce_add(const PerLane<std::uint32_t>& x) const {
    return __reduce_add_sync(kAll, x.value);
  }
  /// By one lane, for all of them.
  __device__ __forceinline__ void count(std::uint64_t* counter, std::uint32_t more) const {
    if (more != 0 && lane_ == 0) atomicAdd(reinterpret_cast<unsigned long long*>(counter), more);
  }

 private:
  static constexpr std::uint32_t kAll = 0xffffffffU;
  unsigned lane_;
};

}  // namespace kvcal::codec
