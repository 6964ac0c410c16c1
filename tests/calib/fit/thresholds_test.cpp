#include "calib/fit/thresholds.h"

#include <gtest/gtest.h>

#include <random>

namespace kvcal::calib {
namespace {

CapturedTensor random_tensor(std::int64_t rows, std::int64_t channels, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  CapturedTensor tensor;
  tensor.x = Matrix(rows, channels);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (float& value : tensor.x.row(r)) value = normal(generator);
  }
  return tensor;
}

TEST(ChannelThresholds, AreEachColumnsQuantiles) {
  const CapturedTensor tensor = random_tensor(501, 37, 1);
  const std::vector<double> fractions = {0, 0.02};
  const auto thresholds = channel_thresholds(CapturedRows(tensor), fractions, 3);
  for (std::int64_t c = 0; c < 37; ++c) {
    std::vector<float> column;
    for (std::int64_t r = 0; r < 501; ++r) column.push_back(tensor.x.row(r)[static_cast<std::size_t>(c)]);
    std::sort(column.begin(), column.end());
    const auto at = static_cast<std::size_t>(c);
    EXPECT_EQ(thresholds[0].lower[at], column.front());
    EXPECT_EQ(thresholds[0].upper[at], column.back());
    // 0.01 * 500 and 0.99 * 500 are whole: no interpolation.
    EXPECT_FLOAT_EQ(thresholds[1].lower[at], column[5]);
    EXPECT_FLOAT_EQ(thresholds[1].upper[at], column[495]);
  }
}

TEST(RowThresholds, AreFoundPerGroupOfChannels) {
  CapturedTensor tensor;
  tensor.x = Matrix(1, 6);
  const float values[] = {3, 1, 2, 30, 10, 20};
  std::copy(std::begin(values), std::end(values), tensor.x.row(0).begin());
  const std::vector<double> fractions = {0};
  const auto whole = row_thresholds(CapturedRows(tensor), 1, fractions, 1)[0];
  EXPECT_EQ(whole.lower, std::vector<float>{1});
  EXPECT_EQ(whole.upper, std::vector<float>{30});
  const auto grouped = row_thresholds(CapturedRows(tensor), 2, fractions, 1)[0];
  EXPECT_EQ(grouped.lower, (std::vector<float>{1, 10}));
  EXPECT_EQ(grouped.upper, (std::vector<float>{3, 30}));
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
