#include "calib/fit/thresholds.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "calib/fit/captured_rows.h"

namespace kvcal::calib {
namespace {

using formats::ThresholdScope;
using testing::row_of;
using testing::set_row;

CapturedTensor random_tensor(ThresholdScope scope, std::int64_t tokens, std::int64_t channels) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  CapturedTensor tensor;
  tensor.x = CapturedMatrix(scope, tokens, channels, formats::Dtype::F32);
  std::vector<float> row(static_cast<std::size_t>(channels));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (float& value : row) value = normal(generator);
    set_row(tensor.x, t, row);
  }
  return tensor;
}

TEST(Thresholds, OfChannelsAreEachOnesQuantiles) {
  const CapturedTensor tensor = random_tensor(ThresholdScope::channel, 501, 37);
  const std::vector<double> fractions = {0, 0.02};
  const auto thresholds =
      find_thresholds(CapturedTokens(tensor), {ThresholdScope::channel, 37, 1}, fractions, 3);
  for (std::size_t c = 0; c < 37; ++c) {
    std::vector<float> column;
    for (std::int64_t t = 0; t < 501; ++t) column.push_back(row_of(tensor.x, t)[c]);
    std::sort(column.begin(), column.end());
    EXPECT_EQ(thresholds[0].lower[c], column.front());
    EXPECT_EQ(thresholds[0].upper[c], column.back());
    // 0.01 * 500 and 0.99 * 500 are whole: no interpolation.
    EXPECT_FLOAT_EQ(thresholds[1].lower[c], column[5]);
    EXPECT_FLOAT_EQ(thresholds[1].upper[c], column[495]);
  }
}

TEST(Thresholds, OfTokensAreFoundPerGroupOfChannels) {
  CapturedTensor tensor;
  tensor.x = CapturedMatrix(ThresholdScope::token, 2, 6, formats::Dtype::F32);
  set_row(tensor.x, 0, std::vector<float>{3, 1, 2, 30, 10, 20});
  set_row(tensor.x, 1, std::vector<float>{-3, -1, -2, -30, -10, -20});
  const std::vector<double> fractions = {0};
  const CapturedTokens tokens(tensor);
  const auto whole = find_thresholds(tokens, {ThresholdScope::token, 6, 1}, fractions, 1)[0];
  EXPECT_EQ(whole.lower, (std::vector<float>{1, -30}));
  EXPECT_EQ(whole.upper, (std::vector<float>{30, -1}));
  const auto grouped = find_thresholds(tokens, {ThresholdScope::token, 6, 2}, fractions, 1)[0];
  EXPECT_EQ(grouped.lower, (std::vector<float>{1, 10, -3, -30}));
  EXPECT_EQ(grouped.upper, (std::vector<float>{3, 30, -1, -10}));
}

TEST(Thresholds, OfSomeTokensSeeNoOthers) {
  const CapturedTensor tensor = random_tensor(ThresholdScope::channel, 100, 3);
  const std::vector<double> fractions = {0};
  const auto some =
      find_thresholds(CapturedTokens(tensor, {40, 100}), {ThresholdScope::channel, 3, 1}, fractions, 1)[0];
  for (std::size_t c = 0; c < 3; ++c) {
    float least = row_of(tensor.x, 40)[c];
    for (std::int64_t t = 41; t < 100; ++t) least = std::min(least, row_of(tensor.x, t)[c]);
    EXPECT_EQ(some.lower[c], least);
  }
}

TEST(Normaliser, OfAConstantChannelHasNoRange) {
  EXPECT_EQ(normaliser(2, 2).range, 0);
  EXPECT_EQ(normaliser(2, 2).zero, 2);
  // A range below half of fp16's smallest denormal, 2^-25, rounds to nothing once stored.
  EXPECT_EQ(normaliser(0, 0x1p-25F).range, 0);
  EXPECT_GT(normaliser(0, 0x1p-22F).range, 0);
}

}  // namespace
}  // namespace kvcal::calib
