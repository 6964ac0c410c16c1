// All 65536 bit patterns, and every fp32 neighbourhood of a rounding boundary, against the compiler's own
// _Float16.
#include "cuda/kernels/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace kvcal::codec {
namespace {

#ifdef __FLT16_MAX__
constexpr bool kCompilerHasHalf = true;
// __extension__: ISO C++20 has no _Float16.
__extension__ using CompilerHalf = _Float16;
#else
// clang 14 has none on plain x86-64: what compares with it is skipped.
constexpr bool kCompilerHasHalf = false;
using CompilerHalf = std::uint16_t;
#endif

float compiler_to_float(std::uint16_t bits) {
  return static_cast<float>(std::bit_cast<CompilerHalf>(bits));
}
std::uint16_t compiler_to_half(float value) {
  return std::bit_cast<std::uint16_t>(static_cast<CompilerHalf>(value));
}

class HalfTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!kCompilerHasHalf) GTEST_SKIP() << "this compiler has no _Float16 to compare with";
  }
};

TEST_F(HalfTest, EveryPatternToFloatAndBack) {
  for (std::uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float value = half_to_float(bits);
    if (std::isnan(compiler_to_float(bits))) {
      EXPECT_TRUE(std::isnan(value)) << i;
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(value)))) << i;
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(value), std::bit_cast<std::uint32_t>(compiler_to_float(bits)))
          << i;
      ASSERT_EQ(float_to_half(value), bits) << i;
    }
  }
}

TEST_F(HalfTest, RoundsEveryBoundaryAsTheCompilerDoes) {
  // Each fp16 value, the tie half-way to its neighbour, and the floats next to both.
  for (std::uint32_t i = 0; i < 0x7c00; ++i) {
    const float value = half_to_float(static_cast<std::uint16_t>(i));
    const float next = i + 1 == 0x7c00 ? 65536.0F : half_to_float(static_cast<std::uint16_t>(i + 1));
    for (const float centre : {value, (value + next) / 2}) {
      for (const float x : {std::nextafter(centre, -1.0F), centre, std::nextafter(centre, 1e6F)}) {
        ASSERT_EQ(float_to_half(x), compiler_to_half(x)) << x;
        ASSERT_EQ(float_to_half(-x), compiler_to_half(-x)) << x;
      }
    }
  }
}

TEST_F(HalfTest, AgreesWithTheCompilerAcrossAllOfFloat) {
  // A step that is prime walks over all exponents with ever different mantissas.
  for (std::uint64_t i = 0; i <= 0xffffffffU; i += 4099) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(i));
    if (!std::isnan(x)) {
      ASSERT_EQ(float_to_half(x), compiler_to_half(x)) << x;
    }
  }
}

TEST(Half, TooLargeBecomesInfinity) {
  EXPECT_EQ(float_to_half(kHalfMax), 0x7bff);
  EXPECT_EQ(float_to_half(65519.996F), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0F), 0x7c00);
  EXPECT_EQ(float_to_half(-std::numeric_limits<float>::infinity()), 0xfc00);
}

TEST(Bfloat16, EveryPatternToFloatAndBack) {
  for (std::uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float value = bfloat16_to_float(bits);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(value)))) << i;
    } else {
      ASSERT_EQ(float_to_bfloat16(value), bits) << i;
    }
  }
}

TEST(Bfloat16, RoundsToNearestEven) {
  // bf16 keeps 7 bits of mantissa: 1 + 2^-8 is a tie between 1 (0x3f80) and 1 + 2^-7 (0x3f81).
  EXPECT_EQ(float_to_bfloat16(1.0F + 0x1p-8F), 0x3f80);
  EXPECT_EQ(float_to_bfloat16(1.0F + 0x1p-8F + 0x1p-20F), 0x3f81);
  EXPECT_EQ(float_to_bfloat16(1.0F + 0x3p-8F), 0x3f82);
  EXPECT_EQ(float_to_bfloat16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(float_to_bfloat16(-0.0F), 0x8000);
  EXPECT_EQ(bfloat16_to_float(0x4049), 3.140625F);
  // A NaN whose payload lies in the lost bits stays a NaN.
  EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(std::bit_cast<float>(0x7f800001U)))));
}

}  // namespace
}  // namespace kvcal::codec
