#include "cuda/hadamard.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "base/error.h"

namespace kvcal::codec {
namespace {

std::vector<float> random_numbers(std::size_t count) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(generator);
  return numbers;
}

// Element i of the transform of one block, by the definition: the sign is that of the common bits of i and j.
double by_definition(const std::vector<float>& x, std::size_t block, std::size_t i) {
  const std::size_t begin = i / block * block;
  double sum = 0;
  for (std::size_t j = begin; j < begin + block; ++j)
    sum += std::popcount((i - begin) & (j - begin)) % 2 == 0 ? double{x[j]} : -double{x[j]};
  return sum / std::sqrt(static_cast<double>(block));
}

TEST(Hadamard, IsTheMatrixOfItsDefinitionInEachBlock) {
  for (const std::size_t block : {1U, 2U, 4U, 8U, 32U, 64U, 128U}) {
    const std::vector<float> x = random_numbers(2 * block);
    std::vector<float> turned = x;
    turn_hadamard(turned, block);
    for (std::size_t i = 0; i < x.size(); ++i)
      EXPECT_NEAR(turned[i], by_definition(x, block, i), 2e-6) << block;
  }
}

TEST(Hadamard, TwiceGivesTheNumbersAgain) {
  const std::vector<float> x = random_numbers(256);
  std::vector<float> turned = x;
  turn_hadamard(turned, 64);
  EXPECT_NE(turned, x);
  turn_hadamard(turned, 64);
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(turned[i], x[i], 2e-6);
}

TEST(Hadamard, BlocksAreTheLargestPowersOfTwo) {
  EXPECT_EQ(hadamard_block(128), 128U);
  EXPECT_EQ(hadamard_block(96), 32U);
  EXPECT_EQ(hadamard_block(80), 16U);
  EXPECT_EQ(hadamard_block(7), 1U);
}

TEST(Hadamard, RefusesWhatItCannotTurn) {
  std::vector<float> x(12);
  EXPECT_THROW(turn_hadamard(x, 3), base::WrongUsage);
  EXPECT_THROW(turn_hadamard(x, 8), base::WrongUsage);
  EXPECT_THROW(turn_hadamard(x, 0), base::WrongUsage);
  EXPECT_NO_THROW(turn_hadamard(x, 4));
}

}  // namespace
}  // namespace kvcal::codec
