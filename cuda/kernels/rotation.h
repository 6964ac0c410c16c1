// cuda/kernels/rotation.h: values that a codebook keeps turned: each block of consecutive channels of a head by a Walsh-Hadamard
// matrix over the root of its size, in float32, as cuda/hadamard.h turns them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda/kernels/codec_math.h"

namespace kvcal::codec {

/// How a head's values are turned, flat so that a kernel takes it by value.
struct Rotation {
  unsigned block =
      0;  ///< channels that a matrix turns together, a power of two that divides the head's; 0: none
  float scale = 0;  ///< rn(1 / rn(sqrt(block)))
};

/// Whether heads of `dim` channels can be turned so, or with 0 not at all.
[[nodiscard]] constexpr bool is_rotation_block(std::uint32_t block, std::uint32_t dim) {
  return block == 0 || (std::has_single_bit(block) && dim % block == 0);
}

/// block: is_rotation_block().
[[nodiscard]] inline Rotation rotation_of(std::uint32_t block) {
  return block > 0 ? Rotation{block, divide_rn(1.0F, std::sqrt(static_cast<float>(block)))} : Rotation{};
}

}  // namespace kvcal::codec
