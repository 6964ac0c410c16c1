// The methods that need no codebook: KIVI, E4M3, llama.cpp's blocks, rotation with fixed levels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "base/error.h"
#include "calib/validate/cache_method.h"

namespace kvcal::calib {
namespace {

using fisher::CachePoint;
using formats::ThresholdScope;

formats::CachedTensor keys(int heads, int dim) {
  return {"key", heads, dim, ThresholdScope::channel};
}

formats::CachedTensor values(int heads, int dim) {
  return {"value", heads, dim, ThresholdScope::token};
}

struct Stored {
  std::vector<float> read;
  StorageUse use;
};

Stored store(const char* method, const formats::CachedTensor& tensor, const std::vector<float>& x) {
  Stored stored{std::vector<float>(x.size(), NAN), {}};
  stored.use = make_method(method, nullptr)->storage(0, tensor)->store(0, x, stored.read);
  EXPECT_EQ(stored.use.values, static_cast<std::int64_t>(x.size()));
  EXPECT_EQ(stored.use.outliers, 0);
  return stored;
}

/// What InvalidInput says; "" where nothing is thrown.
template <typename Body>
std::string refusal(const Body& body) {
  try {
    body();
  } catch (const base::InvalidInput& error) {
    return error.what();
  }
  return "";
}

std::string store_refusal(const char* method, const formats::CachedTensor& tensor,
                          const std::vector<float>& x) {
  return refusal([&] { (void)store(method, tensor, x); });
}

std::string storage_refusal(const char* method, const formats::CachedTensor& tensor) {
  return refusal([&] { (void)make_method(method, nullptr)->storage(7, tensor); });
}

std::vector<float> gaussian(std::size_t count) {
  std::mt19937 generator(11);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& value : x) value = normal(generator);
  return x;
}

double relative_error(const std::vector<float>& x, const std::vector<float>& read) {
  double error = 0, total = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += std::pow(double{read[i]} - double{x[i]}, 2);
    total += std::pow(double{x[i]}, 2);
  }
  return error / total;
}

TEST(OtherMethods, NeedNoCodebookAndTakeKeysAfterRope) {
  const std::vector<std::string> served = served_methods(nullptr), usual = default_methods(nullptr);
  for (const char* name : {"kivi2", "kivi4", "fp8", "q8_0", "q4_0", "turbo2", "turbo3", "turbo4"}) {
    EXPECT_EQ(std::ranges::count(served, name), 1) << name;
    EXPECT_EQ(std::ranges::count(usual, name), 0) << name;
    const auto method = make_method(name, nullptr);
    EXPECT_EQ(method->storage(0, keys(2, 32))->point(), CachePoint::rotated) << name;
    EXPECT_EQ(method->storage(0, values(2, 32))->point(), CachePoint::cached) << name;
    EXPECT_EQ(method->storage(0, keys(2, 32))->static_bytes(), 0) << name;
    EXPECT_EQ(store(name, keys(2, 32), {}).use, StorageUse{}) << name;
  }
}

// Channel 0 runs from 0 to 30 in every 32 tokens: a step of 10. Channel 1 is constant in each of them.
TEST(Kivi, KeysAreGroupedByChannelInBlocksOfTokens) {
  std::vector<float> x;
  for (int t = 0; t < 200; ++t) {
    x.push_back(static_cast<float>(std::min(t % 32, 30)));
    x.push_back(static_cast<float>(100 * (t / 32) + 1));
  }
  const Stored stored = store("kivi2", keys(1, 2), x);
  const auto read = [&](std::size_t token) { return stored.read[token * 2]; };
  for (const std::size_t group : {0U, 96U}) {
    EXPECT_EQ(read(group + 4), 0.0F);
    EXPECT_EQ(read(group + 5), 0.0F);  // half a step: to the even code
    EXPECT_EQ(read(group + 6), 10.0F);
    EXPECT_EQ(read(group + 15), 20.0F);
    EXPECT_EQ(read(group + 25), 20.0F);
    EXPECT_EQ(read(group + 31), 30.0F);
  }
  for (std::size_t t = 0; t < 200; ++t) EXPECT_EQ(stored.read[t * 2 + 1], x[t * 2 + 1]) << t;
  // 200 mod 128: the last 72 wait in fp16.
  for (std::size_t t = 128; t < 200; ++t) EXPECT_EQ(read(t), x[t * 2]) << t;
  // 128 tokens of two codes of 2 bits, 4 times 2 groups, and fp16.
  EXPECT_EQ(stored.use.bytes, 64 + 8 * 4 + 72 * 2 * 2);
}

// 40 channels are a group of 32, from 0 to 30 with a step of 2, and one of 8.
TEST(Kivi, ValuesAreGroupedByTokenAndTheNewestAreExact) {
  std::vector<float> x;
  for (int t = 0; t < 200; ++t) {
    for (int c = 0; c < 32; ++c) x.push_back(static_cast<float>(std::min(c, 30)));
    for (int c = 32; c < 40; ++c) x.push_back(static_cast<float>(1000 + c % 2 * 15));
  }
  const Stored stored = store("kivi4", values(1, 40), x);
  for (const std::size_t token : {0U, 71U}) {
    const auto read = std::span(stored.read).subspan(token * 40, 40);
    EXPECT_EQ(read[4], 4.0F);
    EXPECT_EQ(read[5], 4.0F);
    EXPECT_EQ(read[7], 8.0F);
    EXPECT_EQ(read[31], 30.0F);
    EXPECT_EQ(read[38], 1000.0F);
    EXPECT_EQ(read[39], 1015.0F);
  }
  for (std::size_t i = std::size_t{72} * 40; i < x.size(); ++i) EXPECT_EQ(stored.read[i], x[i]) << i;
  EXPECT_EQ(stored.use.bytes, 72 * 40 / 2 + 72 * 2 * 4 + 128 * 40 * 2);
}

TEST(Kivi, ShortSequencesStayInFp16) {
  const std::vector<float> x = gaussian(std::size_t{128} * 4);
  const std::vector<float> shorter(x.begin(), x.end() - 4);
  EXPECT_EQ(store("kivi2", keys(1, 4), shorter).use.bytes, 127 * 4 * 2);
  EXPECT_LT(relative_error(shorter, store("kivi2", keys(1, 4), shorter).read), 1e-6);
  EXPECT_EQ(store("kivi2", keys(1, 4), x).use.bytes, 128 + 4 * 4 * 4);
  EXPECT_GT(relative_error(x, store("kivi2", keys(1, 4), x).read), 0.01);
  EXPECT_EQ(store("kivi2", values(1, 4), x).use.bytes, 128 * 4 * 2);
}

TEST(Kivi, WhatFp16CannotHoldIsNamed) {
  std::vector<float> x(std::size_t{200} * 2);
  x[40 * 2 + 1] = 3e5F;
  EXPECT_NE(store_refusal("kivi2", keys(1, 2), x).find("token 32, channel 1: the scale"), std::string::npos);
  x[40 * 2 + 1] = 0;
  x[130 * 2] = 1e5F;
  EXPECT_NE(store_refusal("kivi2", keys(1, 2), x).find("token 130, channel 0: the number 100000"),
            std::string::npos);
  std::ranges::fill(x, -1e5F);
  EXPECT_NE(store_refusal("kivi4", values(1, 2), x).find("token 0, channel 0: the minimum"),
            std::string::npos);
}

TEST(Float8, GoldenNumbers) {
  const std::vector<std::pair<float, float>> pairs = {
      {1000.0F, 448.0F},   {-1000.0F, -448.0F},  {1e30F, 448.0F},        {464.0F, 448.0F},
      {440.0F, 448.0F},    {431.0F, 416.0F},     {17.0F, 16.0F},         {19.0F, 20.0F},
      {15.5F, 16.0F},      {0.3F, 0.3125F},      {-0.3F, -0.3125F},      {0x1p-9F, 0x1p-9F},
      {0x1p-10F, 0.0F},    {0x1.8p-9F, 0x1p-8F}, {0x1.02p-10F, 0x1p-9F}, {0x1.fp-7F, 0x1p-6F},
      {0x1.1p-6F, 0x1p-6F}};
  std::vector<float> x;
  for (const auto& pair : pairs) x.push_back(pair.first);
  const Stored stored = store("fp8", values(1, static_cast<int>(x.size())), x);
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(stored.read[i], pairs[i].second) << x[i];
  EXPECT_EQ(stored.use.bytes, static_cast<std::int64_t>(x.size()));
}

TEST(Float8, EveryNumberOfTheFormatIsExact) {
  std::vector<float> x;
  for (int mantissa = 0; mantissa < 8; ++mantissa) x.push_back(std::ldexp(static_cast<float>(mantissa), -9));
  for (int exponent = -6; exponent <= 8; ++exponent)
    for (int mantissa = 8; mantissa < 16; ++mantissa)
      x.push_back(std::ldexp(static_cast<float>(mantissa), exponent - 3));
  x.pop_back();  // it would be 480: that code is NaN
  EXPECT_EQ(x.back(), 448.0F);
  EXPECT_EQ(store("fp8", keys(1, static_cast<int>(x.size())), x).read, x);
  for (float& value : x) value = -value;
  EXPECT_EQ(store("fp8", keys(1, static_cast<int>(x.size())), x).read, x);
}

TEST(BlockInt, EightBitsKeepARampWhoseStepIsTheScale) {
  std::vector<float> x;
  for (int i = 0; i < 31; ++i) x.push_back(0.25F * static_cast<float>(i));
  x.push_back(-31.75F);
  const Stored stored = store("q8_0", keys(1, 32), x);
  EXPECT_EQ(stored.read, x);
  EXPECT_EQ(stored.use.bytes, 34);
}

TEST(BlockInt, EightBitsRoundHalvesAwayFromZeroAndTheScaleToFp16) {
  std::vector<float> x(64), expected(64);
  // A scale of 1.
  x[0] = 127.0F, x[1] = 0.4F, x[2] = 0.5F, x[3] = -2.5F;
  expected[0] = 127.0F, expected[2] = 1.0F, expected[3] = -3.0F;
  // 1000 / 127 is stored as 7.875.
  x[40] = -1000.0F, x[41] = 10.0F;
  expected[40] = -1000.125F, expected[41] = 7.875F;
  const Stored stored = store("q8_0", values(2, 32), x);
  EXPECT_EQ(stored.read, expected);
  EXPECT_EQ(stored.use.bytes, 68);
}

TEST(BlockInt, FourBitsPutTheLargestAtMinusEight) {
  std::vector<float> x(64), expected(64);
  // A scale of 2: the largest comes first, its negative is cut off at code 15.
  x[3] = -16.0F, x[4] = 16.0F, x[5] = 3.0F, x[6] = 2.9F, x[20] = -3.0F, x[21] = -3.1F;
  expected[3] = -16.0F, expected[4] = 14.0F, expected[5] = 4.0F, expected[6] = 2.0F;
  expected[20] = -2.0F, expected[21] = -4.0F;
  // A scale of -1.
  x[32] = 8.0F, x[62] = 2.0F, x[63] = -8.0F;
  expected[32] = 8.0F, expected[62] = 2.0F, expected[63] = -7.0F;
  const Stored stored = store("q4_0", values(1, 64), x);
  EXPECT_EQ(stored.read, expected);
  EXPECT_EQ(stored.use.bytes, 36);
}

TEST(BlockInt, RefusesWhatDoesNotFit) {
  const std::string odd = storage_refusal("q4_0", keys(3, 16));
  EXPECT_NE(odd.find("q4_0, layer 7: the 48 channels"), std::string::npos) << odd;
  std::vector<float> x(128);
  x[64 + 35] = -1e7F;
  EXPECT_NE(store_refusal("q8_0", keys(1, 64), x).find("token 1, channel 35"), std::string::npos);
  EXPECT_NE(store_refusal("q4_0", keys(1, 64), x).find("token 1, channel 35"), std::string::npos);
}

// Max 1960, table I: the least squared error of 4, 8 and 16 levels for a normal variable of variance 1.
TEST(Rotated, ReachesTheDistortionOfLloydMax) {
  const std::vector<float> x = gaussian(std::size_t{300} * 512);
  const auto check = [&](const char* name, double distortion, std::int64_t bits) {
    const Stored stored = store(name, keys(2, 256), x);
    EXPECT_NEAR(relative_error(x, stored.read) / distortion, 1.0, 0.03) << name;
    EXPECT_EQ(stored.use.bytes, 600 * (256 * bits / 8 + 2)) << name;
  };
  check("turbo2", 0.1175, 2);
  check("turbo3", 0.03454, 3);
  check("turbo4", 0.009497, 4);
}

// A single far channel is spread over all of its head; unrotated it would be cut off at 2.152 of 11.3.
TEST(Rotated, SpreadsAFarChannelWithinItsHead) {
  std::vector<float> x(std::size_t{3} * 128);
  x[128 + 37] = -5.0F;
  const Stored stored = store("turbo3", values(3, 128), x);
  EXPECT_LT(relative_error(x, stored.read), 0.05);
  for (std::size_t i = 0; i < 128; ++i) {
    EXPECT_EQ(stored.read[i], 0.0F);
    EXPECT_EQ(stored.read[256 + i], 0.0F);
  }
  // Only the norm knows of the magnitude.
  for (float& value : x) value *= 64.0F;
  const std::vector<float> larger = store("turbo3", values(3, 128), x).read;
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(larger[i], 64.0F * stored.read[i]) << i;
}

TEST(Rotated, HeadsNeedAPowerOfTwoThatMixes) {
  const std::vector<float> x = gaussian(std::size_t{500} * 96);
  EXPECT_NEAR(relative_error(x, store("turbo4", keys(1, 96), x).read), 0.0093, 0.0006);
  const std::string odd = storage_refusal("turbo4", keys(2, 12));
  EXPECT_NE(odd.find("turbo4, layer 7: the heads of 'key' have 12 channels"), std::string::npos) << odd;
  std::vector<float> far(64);
  far[20] = far[21] = 6e4F;
  EXPECT_NE(store_refusal("turbo2", keys(2, 16), far).find("token 0, channel 16: the norm"),
            std::string::npos);
}

}  // namespace
}  // namespace kvcal::calib
