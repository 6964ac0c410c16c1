// The bytes of packed rows, written out by hand from the layout in cuda/bit_pack.h and cuda/row_codec.h: what
// was stored once is read by every later version.
#include <gtest/gtest.h>

#include <cstdint>
#include <ostream>
#include <span>
#include <vector>

#include "cuda/bit_pack.h"
#include "cuda/kernels/float16.h"
#include "cuda/row_codec.h"

namespace kvcal::codec {
namespace {

using Bytes = std::vector<std::uint8_t>;
using Halves = std::vector<std::uint16_t>;

constexpr std::size_t kChannels = 11, kSinks = 2, kRows = 2;
constexpr std::uint32_t kOutlierChannel = 3;  // of the first row
constexpr double kOutlierFraction = 0.3;

/// Two rows of 11 codes. Each has the code 0 three times and the last code three times (in the first row the
/// outlier's place is one of them), so that the quantiles 0, 0.15, 0.85 and 1 are -1 and 1: the sorted numbers
/// 1 and 2, and 8 and 9, which 0.15 and 0.85 lie between, are equal.
struct Layout {
  int bits;
  Bytes codes;   // [rows, channels]
  Bytes packed;  // [rows, row_bytes]
};

std::ostream& operator<<(std::ostream& out, const Layout& layout) {
  return out << layout.bits << " bits";
}

// Evenly spaced: -1 for the code 0, 1 for the last.
float centroid(unsigned code, int bits) {
  const unsigned last = (1U << bits) - 1U;
  return 2.0F * static_cast<float>(code) / static_cast<float>(last) - 1.0F;
}

Datatype even_datatype(int bits) {
  std::vector<float> centroids;
  for (unsigned code = 0; code < (1U << bits); ++code) centroids.push_back(centroid(code, bits));
  return make_datatype(centroids);
}

// 0.1 rounds down, 6.1 up; 65504 is the largest of fp16, 2^-14 its smallest normal number, 2^-24 its smallest.
const std::vector<float> kSinkNumbers = {0, 1, -2, 0.5F, 65504.0F, 0.1F, 3, -0.25F, 1024, 0x1p-24F, 0x1p-14F};
const Halves kSinkHalves = {0x0000, 0x3c00, 0xc000, 0x3800, 0x7bff, 0x2e66,
                            0x4200, 0xb400, 0x6400, 0x0001, 0x0400};
constexpr float kOutlier = 6.1F;
constexpr std::uint16_t kOutlierHalf = 0x461a;  // 6.1 = 2^2 (1 + 537.6 / 1024): (2 + 15) << 10 | 538

class GoldenRows : public testing::TestWithParam<Layout> {
 protected:
  const Layout layout_ = GetParam();
  const Datatype datatype_ = even_datatype(layout_.bits);

  // Two sinks, the second the first from its end, then the centroids of the codes.
  [[nodiscard]] std::vector<float> numbers(bool with_outlier) const {
    std::vector<float> x = kSinkNumbers;
    x.insert(x.end(), kSinkNumbers.rbegin(), kSinkNumbers.rend());
    for (const std::uint8_t code : layout_.codes) x.push_back(centroid(code, layout_.bits));
    if (with_outlier) x[kSinks * kChannels + kOutlierChannel] = kOutlier;
    return x;
  }

  void expect_parts(const PackedRows& packed, bool with_outlier) const {
    EXPECT_EQ(packed.codes, layout_.packed);
    Halves sinks = kSinkHalves;
    sinks.insert(sinks.end(), kSinkHalves.rbegin(), kSinkHalves.rend());
    EXPECT_EQ(packed.sink_values, sinks);
    EXPECT_EQ(packed.keeps_outliers, with_outlier);
    if (!with_outlier) {
      EXPECT_TRUE(packed.first_outlier.empty() && packed.outliers.empty());
      return;
    }
    EXPECT_EQ(packed.first_outlier, (std::vector<std::uint64_t>{0, 1, 1}));
    EXPECT_EQ(packed.outliers, (std::vector<Outlier>{{kOutlierChannel, kOutlierHalf}}));
  }

  // The centroids come back as they are; sinks and the outlier are rounded to fp16.
  void expect_decoded(const std::vector<float>& decoded, bool with_outlier) const {
    std::vector<float> expected = numbers(with_outlier);
    for (std::size_t i = 0; i < kSinks * kChannels; ++i)
      expected[i] = codec::half_to_float(kSinkHalves[i < kChannels ? i : kSinks * kChannels - 1 - i]);
    if (with_outlier) expected[kSinks * kChannels + kOutlierChannel] = codec::half_to_float(kOutlierHalf);
    EXPECT_EQ(decoded, expected);
  }

  // Sinks: 2 x 11 fp16. Outliers: a count of 2 bytes for each of 2 rows, one index and its fp16.
  [[nodiscard]] std::size_t bytes(bool with_outlier) const {
    return layout_.packed.size() + 44U + (with_outlier ? 2U * 2 + 4 : 0U);
  }
};

TEST_P(GoldenRows, OfKeys) {
  for (const bool with_outlier : {false, true}) {
    const KeyNormaliser normaliser(std::vector<float>(kChannels, -1.0F), std::vector<float>(kChannels, 1.0F),
                                   with_outlier ? kOutlierFraction : 0);
    for (const Affine& affine : normaliser.affines()) EXPECT_EQ(affine, (Affine{0x3c00, 0}));
    const std::vector<float> x = numbers(with_outlier);
    const PackedRows packed = encode_keys(x, normaliser, datatype_, {.sinks = kSinks, .threads = 1});
    expect_parts(packed, with_outlier);
    EXPECT_TRUE(packed.affines.empty());
    EXPECT_EQ(packed.bytes(), bytes(with_outlier));
    std::vector<float> decoded(x.size());
    decode_keys(packed, normaliser, datatype_, decoded, 1);
    expect_decoded(decoded, with_outlier);
  }
}

TEST_P(GoldenRows, OfValues) {
  for (const bool with_outlier : {false, true}) {
    const ValueOptions options{.outlier_fraction = with_outlier ? kOutlierFraction : 0};
    const std::vector<float> x = numbers(with_outlier);
    const PackedRows packed =
        encode_values(x, kChannels, options, datatype_, {.sinks = kSinks, .threads = 1});
    expect_parts(packed, with_outlier);
    EXPECT_EQ(packed.affines, (std::vector<Affine>(kRows, {0x3c00, 0})));
    EXPECT_EQ(packed.bytes(), bytes(with_outlier) + kRows * 4);
    std::vector<float> decoded(x.size());
    decode_values(packed, datatype_, decoded, 1);
    expect_decoded(decoded, with_outlier);
  }
}

TEST_P(GoldenRows, AreTheBytesOfPackCodes) {
  const std::size_t width = layout_.packed.size() / kRows;
  for (std::size_t row = 0; row < kRows; ++row) {
    const auto codes = std::span(layout_.codes).subspan(row * kChannels, kChannels);
    const auto packed = std::span(layout_.packed).subspan(row * width, width);
    EXPECT_EQ(pack_codes(codes, layout_.bits), Bytes(packed.begin(), packed.end()));
    EXPECT_EQ(unpack_codes(packed, kChannels, layout_.bits), Bytes(codes.begin(), codes.end()));
  }
}

// The outlier's place, the fourth code, holds the last code, whose centroid is the nearest. The first bytes:
//   2 bits  0 | 1 << 2 | 2 << 4 | 3 << 6 = 0xe4; 22 bits take 3 bytes
//   3 bits  0 | 1 << 3 | 2 << 6 | 7 << 9 | 0 << 12 | 7 << 15 | 4 << 18 | 5 << 21 = 0xb38e88, the lowest byte
//           first; then 7 | 0 << 3 | 6 << 6 = 0x187; 33 bits take 5 bytes
//   4 bits  0 | 1 << 4 = 0x10, the lower nibble first; 44 bits take 6 bytes
INSTANTIATE_TEST_SUITE_P(Bits, GoldenRows,
                         testing::Values(Layout{2,
                                                {0, 1, 2, 3, 0, 3, 1, 2, 3, 0, 1,  //
                                                 3, 0, 0, 1, 2, 3, 3, 2, 1, 2, 0},
                                                {0xe4, 0x9c, 0x13,  //
                                                 0x43, 0xbe, 0x09}},
                                         Layout{3,
                                                {0, 1, 2, 7, 0, 7, 4, 5, 7, 0, 6,  //
                                                 7, 0, 0, 1, 6, 7, 7, 2, 5, 4, 0},
                                                {0x88, 0x8e, 0xb3, 0x87, 0x01,  //
                                                 0x07, 0xe2, 0x5f, 0x25, 0x00}},
                                         Layout{4,
                                                {0,  1, 2, 15, 0, 15, 9,  5, 15, 0, 14,  //
                                                 15, 0, 0, 1,  6, 15, 15, 8, 11, 4, 0},
                                                {0x10, 0xf2, 0xf0, 0x59, 0x0f, 0x0e,  //
                                                 0x0f, 0x10, 0xf6, 0x8f, 0x4b, 0x00}}));

TEST(GoldenBytes, CountingCodesOfUnevenCentroids) {
  // Codes 0 to 7 at 3 bits are the bytes 88 c6 fa; a row begins at a byte of its own.
  const Datatype datatype = make_datatype(std::vector<float>{-1, -0.7F, -0.4F, -0.1F, 0.1F, 0.4F, 0.7F, 1});
  const std::vector<float> row = {-1, -0.7F, -0.4F, -0.1F, 0.1F, 0.4F, 0.7F, 1, -1, 1};
  std::vector<float> x = row;
  x.insert(x.end(), row.begin(), row.end());
  const PackedRows packed = encode_values(x, row.size(), {}, datatype, {});
  EXPECT_EQ(packed.codes, (Bytes{0x88, 0xc6, 0xfa, 0x38, 0x88, 0xc6, 0xfa, 0x38}));
  EXPECT_EQ(packed.affines, (std::vector<Affine>(2, {0x3c00, 0})));
  EXPECT_EQ(packed.bytes(), 2U * (4 + 4));
}

TEST(GoldenBytes, AffinesStandRowByRowAndGroupByGroup) {
  // Ranges 0 to 2 and -4 to 4; 1 to 2 and 0.1 alone.
  const std::vector<float> x = {0, 2, -4, 4, 2, 1, 0.1F, 0.1F};
  const PackedRows packed = encode_values(x, 4, {.groups = 2}, even_datatype(2), {});
  EXPECT_EQ(packed.affines,
            (std::vector<Affine>{{0x3c00, 0x3c00}, {0x4400, 0}, {0x3800, 0x3e00}, {0, 0x2e66}}));
}

}  // namespace
}  // namespace kvcal::codec
