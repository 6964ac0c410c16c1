#include "cuda/hadamard.h"

#include <bit>
#include <cmath>

#include "base/error.h"

namespace kvcal::codec {

void turn_hadamard(std::span<float> x, std::size_t block) {
  if (!std::has_single_bit(block) || x.size() % block != 0) {
    throw base::WrongUsage(base::concat("a Hadamard matrix of ", block, " channels cannot turn ", x.size(),
                                        ": expected a power of two that divides them"));
  }
  // A block is a multiple of twice every step, so that pairs never reach into the next one.
  for (std::size_t step = 1; step < block; step *= 2) {
    for (std::size_t begin = 0; begin < x.size(); begin += 2 * step) {
      for (std::size_t i = begin; i < begin + step; ++i) {
        const float a = x[i], b = x[i + step];
        x[i] = a + b;
        x[i + step] = a - b;
      }
    }
  }
  const float scale = 1.0F / std::sqrt(static_cast<float>(block));
  for (float& value : x) value *= scale;
}

}  // namespace kvcal::codec
