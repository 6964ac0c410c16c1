#include "cuda/row_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "base/error.h"

namespace kvcal::codec {
namespace {

struct RowsCase {
  int bits;
  std::size_t channels;
  double outliers;
  int groups = 1;
};

std::ostream& operator<<(std::ostream& out, const RowsCase& rows) {
  return out << rows.bits << " bits, " << rows.channels << " channels, " << rows.outliers << " outliers, "
             << rows.groups << " groups";
}

Datatype some_datatype(int bits) {
  std::vector<float> centroids;
  const int count = 1 << bits;
  for (int i = 0; i < count; ++i) {
    const float x = (2.0F * static_cast<float>(i) + 1) / static_cast<float>(count) - 1;
    centroids.push_back(x * std::abs(x) * 0.3F + x * 0.7F);
  }
  return make_datatype(centroids, {1.02F, -0.003F});
}

std::vector<float> some_rows(std::size_t tokens, std::size_t channels) {
  std::mt19937 generator(7);
  std::student_t_distribution<float> heavy(3);
  std::vector<float> x(tokens * channels);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = heavy(generator) * (1 + static_cast<float>(i % channels));
  // A token whose values are all the same, and one with a single far value.
  for (std::size_t c = 0; c < channels; ++c) x[5 * channels + c] = -1.25F;
  x[6 * channels + channels / 2] = 1e4F;
  return x;
}

class RowCodec : public testing::TestWithParam<RowsCase> {
 protected:
  static constexpr std::size_t kTokens = 150, kSinks = 2;
  const RowsCase case_ = GetParam();
  const Datatype datatype_ = some_datatype(case_.bits);
  const std::vector<float> x_ = some_rows(kTokens, case_.channels);
  [[nodiscard]] std::span<const float> row(std::size_t token) const {
    return std::span(x_).subspan(token * case_.channels, case_.channels);
  }
  [[nodiscard]] KeyNormaliser normaliser() const {
    std::vector<float> lower, upper;
    for (std::size_t c = 0; c < case_.channels; ++c) {
      lower.push_back(-2.0F - static_cast<float>(c));
      upper.push_back(1.5F + static_cast<float>(c));
    }
    return {lower, upper, case_.outliers};
  }
  // Each row is what the codec of one token makes of it.
  void expect_rows(const PackedRows& packed, std::span<const float> decoded, const auto& encode,
                   const auto& decode) {
    ASSERT_EQ(packed.rows(), kTokens - kSinks);
    std::size_t bytes = kSinks * case_.channels * 2;
    for (std::size_t r = 0; r < packed.rows(); ++r) {
      const EncodedVector one = encode(row(kSinks + r));
      const auto codes = std::span(packed.codes).subspan(r * packed.row_bytes(), packed.row_bytes());
      EXPECT_TRUE(std::ranges::equal(codes, one.codes)) << r;
      if (packed.keeps_outliers) {
        const auto outliers =
            std::span(packed.outliers)
                .subspan(packed.first_outlier[r], packed.first_outlier[r + 1] - packed.first_outlier[r]);
        EXPECT_TRUE(std::ranges::equal(outliers, one.outliers)) << r;
      }
      const std::vector<float> expected = decode(one);
      EXPECT_TRUE(
          std::ranges::equal(decoded.subspan((kSinks + r) * case_.channels, case_.channels), expected))
          << r;
      bytes += one.bytes();
    }
    EXPECT_EQ(packed.bytes(), bytes);
    for (std::size_t i = 0; i < kSinks * case_.channels; ++i)
      EXPECT_EQ(decoded[i], codec::half_to_float(codec::float_to_half(x_[i])));
  }
};

TEST_P(RowCodec, OfKeysIsTheCodecOfEachToken) {
  const KeyNormaliser normal = normaliser();
  const PackedRows packed = encode_keys(x_, normal, datatype_, {.sinks = kSinks, .threads = 3});
  std::vector<float> decoded(x_.size());
  decode_keys(packed, normal, datatype_, decoded, 2);
  expect_rows(
      packed, decoded, [&](std::span<const float> x) { return encode_key(x, normal, datatype_); },
      [&](const EncodedVector& one) { return decode_key(one, normal, datatype_); });
}

TEST_P(RowCodec, OfValuesIsTheCodecOfEachToken) {
  const ValueOptions options{case_.outliers, case_.groups};
  const PackedRows packed =
      encode_values(x_, case_.channels, options, datatype_, {.sinks = kSinks, .threads = 3});
  std::vector<float> decoded(x_.size());
  decode_values(packed, datatype_, decoded, 2);
  expect_rows(
      packed, decoded, [&](std::span<const float> x) { return encode_value(x, options, datatype_); },
      [&](const EncodedVector& one) { return decode_value(one, datatype_); });
}

TEST_P(RowCodec, AnyNumberOfThreadsGivesTheSameBytes) {
  const ValueOptions options{case_.outliers, case_.groups};
  const PackedRows one = encode_values(x_, case_.channels, options, datatype_, {.threads = 1});
  for (const int threads : {2, 5}) {
    const PackedRows many = encode_values(x_, case_.channels, options, datatype_, {.threads = threads});
    EXPECT_EQ(one.codes, many.codes);
    EXPECT_EQ(one.affines, many.affines);
    EXPECT_EQ(one.first_outlier, many.first_outlier);
    EXPECT_EQ(one.outliers, many.outliers);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RowCodec,
                         testing::Values(RowsCase{2, 192, 0}, RowsCase{3, 192, 0.01},
                                         RowsCase{4, 192, 0.1, 3}, RowsCase{2, 7, 0.05}, RowsCase{3, 13, 0},
                                         RowsCase{3, 13, 0.1}, RowsCase{4, 9, 0.01}, RowsCase{3, 1, 0},
                                         RowsCase{4, 24, 0.3, 4}));

TEST(RowCodecOf, AllSinksAndNoTokens) {
  const Datatype datatype = some_datatype(2);
  const std::vector<float> x = some_rows(10, 4);
  const PackedRows packed = encode_values(x, 4, {}, datatype, {.sinks = 99});
  EXPECT_EQ(packed.rows(), 0U);
  EXPECT_EQ(packed.bytes(), 10U * 4 * 2);
  std::vector<float> decoded(x.size());
  decode_values(packed, datatype, decoded);
  EXPECT_EQ(decoded[39], codec::half_to_float(codec::float_to_half(x[39])));
  EXPECT_EQ(encode_values({}, 4, {}, datatype, {}).tokens, 0U);
}

TEST(RowCodecOf, BadInputNamesTokenAndChannel) {
  const Datatype datatype = some_datatype(3);
  const auto message = [&](std::size_t at, float value, double outliers,
                           std::size_t sinks = 0) -> std::string {
    std::vector<float> x = some_rows(100, 8);
    x[at] = value;
    try {
      (void)encode_values(x, 8, {outliers, 1}, datatype, {.sinks = sinks, .threads = 1});
    } catch (const base::InvalidInput& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message(70 * 8 + 3, std::nanf(""), 0).find("token 70, channel 3"), std::string::npos);
  EXPECT_NE(message(1, INFINITY, 0, 1).find("token 0, channel 1"), std::string::npos);
  EXPECT_NE(message(2, 1e5F, 0, 1).find("the sink 100000 overflows fp16"), std::string::npos);
  EXPECT_NE(message(70 * 8 + 3, 1e6F, 0.3).find("token 70, channel 3: the outlier"), std::string::npos);
  EXPECT_NE(message(70 * 8 + 3, 1e6F, 0).find("token 70, channel 0: range or zero"), std::string::npos);
  EXPECT_THROW((void)encode_values(std::vector<float>(9), 4, {}, datatype, {}), base::WrongUsage);
  EXPECT_THROW((void)encode_values(std::vector<float>(8), 4, {0, 3}, datatype, {}), base::WrongUsage);
}

TEST(RowCodecOf, DamagedPartsAreRefused) {
  const Datatype datatype = some_datatype(3);
  const std::vector<float> x = some_rows(20, 8);
  const PackedRows whole = encode_values(x, 8, {0.3, 1}, datatype, {.sinks = 1});
  const auto expect_refused = [&](const auto& damage) {
    PackedRows packed = whole;
    damage(packed);
    std::vector<float> to(x.size());
    EXPECT_THROW(decode_values(packed, datatype, to), base::InvalidInput);
  };
  expect_refused([](PackedRows& packed) { packed.codes.pop_back(); });
  expect_refused([](PackedRows& packed) { packed.affines.pop_back(); });
  expect_refused([](PackedRows& packed) { packed.sink_values.pop_back(); });
  expect_refused([](PackedRows& packed) { packed.sinks = 21; });
  expect_refused([](PackedRows& packed) { packed.outliers.back().index = 8; });
  expect_refused([](PackedRows& packed) { packed.outliers.pop_back(); });
  expect_refused([](PackedRows& packed) { std::swap(packed.first_outlier[3], packed.first_outlier[10]); });
  expect_refused([](PackedRows& packed) { packed.bits = 4; });
  std::vector<float> small(x.size() - 1);
  EXPECT_THROW(decode_values(whole, datatype, small), base::InvalidInput);
}

}  // namespace
}  // namespace kvcal::codec
