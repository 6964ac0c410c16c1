// cuda/hadamard.h: the rotation of values: Walsh-Hadamard matrices, each over a block of consecutive channels.
//
// Attention is linear in the values: what it makes of turned ones is turned back once for each query head. The matrix of 2^n
// channels, divided by the root of their number, is orthogonal and its own inverse (Sylvester 1867).
#pragma once

#include <cstddef>
#include <span>

namespace kvcal::codec {

/// The largest power of two that divides dim, at least 1: what a head of so many channels is turned by. dim >= 1.
[[nodiscard]] constexpr std::size_t hadamard_block(std::size_t dim) {
  return dim & (~dim + 1);
}

/// Turns each block of x in place; once more turns it back, but for rounding. In float32, always in this order: sums and
/// differences of channels 1, 2, 4, ... apart, then rn(x * rn(1 / rn(sqrt(block)))).
/// Throws base::WrongUsage where block is no power of two or x no whole number of blocks.
void turn_hadamard(std::span<float> x, std::size_t block);

}  // namespace kvcal::codec
