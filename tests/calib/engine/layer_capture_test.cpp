#include "calib/engine/layer_capture.h"

#include <gtest/gtest.h>

#include <bit>
#include <span>
#include <tuple>
#include <vector>

#include "base/error.h"

namespace kvcal::calib {
namespace {

using formats::Dtype;
using formats::ThresholdScope;

constexpr std::int64_t kTokens = 100, kChannels = 7;

class CapturedMatrixOf : public testing::TestWithParam<std::tuple<ThresholdScope, Dtype>> {};

// Small whole numbers are exact in bfloat16.
float number(std::int64_t token, std::int64_t channel) {
  return static_cast<float>((token * kChannels + channel) % 251 - 100);
}

TEST_P(CapturedMatrixOf, AnyPartReadIsWhatWasPut) {
  const auto [scope, dtype] = GetParam();
  CapturedMatrix matrix(scope, kTokens, kChannels, dtype);
  // In pieces, the later tokens first.
  for (const Range tokens : {Range{60, 100}, Range{0, 1}, Range{1, 60}}) {
    std::vector<float> wide;
    std::vector<std::uint16_t> narrow;
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      for (std::int64_t c = 0; c < kChannels; ++c) {
        wide.push_back(number(t, c));
        narrow.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(wide.back()) >> 16));
      }
    }
    matrix.put(tokens.begin,
               dtype == Dtype::F32 ? std::as_bytes(std::span(wide)) : std::as_bytes(std::span(narrow)));
  }
  for (const Range tokens : {Range{0, kTokens}, Range{33, 34}, Range{31, 97}, Range{5, 5}}) {
    for (const Range channels : {Range{0, kChannels}, Range{3, 4}, Range{2, 6}}) {
      std::vector<float> read(static_cast<std::size_t>(tokens.size() * channels.size()), -1.0F);
      matrix.read(tokens, channels, read);
      std::size_t i = 0;
      for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
        for (std::int64_t c = channels.begin; c < channels.end; ++c)
          EXPECT_EQ(read[i++], number(t, c)) << t << ", " << c;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(ScopesAndTypes, CapturedMatrixOf,
                         testing::Combine(testing::Values(ThresholdScope::channel, ThresholdScope::token),
                                          testing::Values(Dtype::F32, Dtype::BF16)));

TEST(CapturedMatrix, OfAnotherTypeIsAnError) {
  EXPECT_THROW(CapturedMatrix(ThresholdScope::token, 1, 1, Dtype::F16), base::Error);
}

}  // namespace
}  // namespace kvcal::calib
