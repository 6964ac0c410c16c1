// cuda/kernels/warp_lockstep.h: the warp of warp.h on a CPU: 32 lanes, one after the other through each phase.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <numeric>

#include "cuda/kernels/record_math.h"
#include "cuda/kernels/warp.h"

namespace kvcal::codec {

class LockstepWarp {
 public:
  template <typename T>
  struct PerLane {
    std::array<T, kLanes> values{};
    T& operator[](unsigned lane) { return values[lane]; }
    const T& operator[](unsigned lane) const { return values[lane]; }
  };

  /// reversed: lane 31 first. A body without races gives the same.
  explicit LockstepWarp(bool reversed = false) : reversed_(reversed) {}

  template <typename Body>
  void each(const Body& body) const {
    if (reversed_) {
      for (unsigned lane = kLanes; lane-- > 0;) body(lane);
    } else {
      for (unsigned lane = 0; lane < kLanes; ++lane) body(lane);
    }
  }
  void sync() const {}

  [[nodiscard]] std::uint32_t ballot(const PerLane<bool>& flags) const {
    std::uint32_t mask = 0;
    for (unsigned lane = 0; lane < kLanes; ++lane) mask |= std::uint32_t{flags[lane]} << lane;
    return mask;
  }
  template <typename T>
  [[nodiscard]] T broadcast(const PerLane<T>& x, unsigned lane) const {
    return x.values.at(lane);
  }
  [[nodiscard]] std::uint32_t reduce_min(const PerLane<std::uint32_t>& x) const {
    return *std::ranges::min_element(x.values);
  }
  [[nodiscard]] std::uint32_t reduce_max(const PerLane<std::uint32_t>& x) const {
    return *std::ranges::max_element(x.values);
  }
  [[nodiscard]] std::uint32_t reduce_add(const PerLane<std::uint32_t>& x) const {
    return std::accumulate(x.values.begin(), x.values.end(), std::uint32_t{0});
  }
  void count(std::uint64_t* counter, std::uint32_t more) const {
    if (more != 0) std::atomic_ref(*counter).fetch_add(more, std::memory_order_relaxed);
  }

 private:
  bool reversed_;
};

}  // namespace kvcal::codec
