#include "cuda/vector_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "base/error.h"
#include "cuda/bit_pack.h"

namespace kvcal::codec {
namespace {

const std::vector<float> kNuq2 = {-1, -0.25F, 0.25F, 1};
const std::vector<float> kNuq3 = {-1, -0.6F, -0.3F, -0.1F, 0.1F, 0.3F, 0.6F, 1};

std::vector<float> normal_values(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.3F, 2.0F);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

float as_half(float value) {
  return codec::half_to_float(codec::float_to_half(value));
}

// Calls it and gives the message of the InvalidInput that it must throw.
template <typename Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const base::InvalidInput& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(Quantile, InterpolatesLinearly) {
  // numpy.quantile([7, 1, 3, 10], [0, 0.1, 0.5, 0.9, 1]) is 1, 1.6, 5, 9.1, 10.
  std::vector<float> values = {7, 1, 3, 10};
  EXPECT_EQ(quantile(values, 0), 1.0F);
  EXPECT_FLOAT_EQ(quantile(values, 0.1), 1.6F);
  EXPECT_EQ(quantile(values, 0.5), 5.0F);
  EXPECT_FLOAT_EQ(quantile(values, 0.9), 9.1F);
  EXPECT_EQ(quantile(values, 1), 10.0F);
}

TEST(Quantile, OfOneValueIsThatValue) {
  std::vector<float> one = {3.5F};
  EXPECT_EQ(quantile(one, 0.3), 3.5F);
}

TEST(VectorCodec, ValueWithoutOutliersIsWithinTheWidestGap) {
  const std::vector<float> x = normal_values(133, 3);
  const Datatype datatype = make_datatype(kNuq3);
  const EncodedVector encoded = encode_value(x, {}, datatype);
  EXPECT_TRUE(encoded.outliers.empty());
  const std::vector<float> back = decode_value(encoded, datatype);
  // Half the widest gap, 0.2 of the range, and fp16's rounding of range and zero.
  const float range = codec::half_to_float(encoded.affines.at(0).scale);
  for (std::size_t c = 0; c < x.size(); ++c) EXPECT_LE(std::abs(back[c] - x[c]), 0.2F * range + 0.01F) << c;
  // Minimum and maximum take the end centroids.
  const auto codes = unpack_codes(encoded.codes, x.size(), 3);
  EXPECT_EQ(codes[static_cast<std::size_t>(std::min_element(x.begin(), x.end()) - x.begin())], 0);
  EXPECT_EQ(codes[static_cast<std::size_t>(std::max_element(x.begin(), x.end()) - x.begin())], 7);
}

TEST(VectorCodec, BytesAreWhatIsStored) {
  const std::vector<float> x = normal_values(256, 5);
  const Datatype datatype = make_datatype(kNuq3);
  EXPECT_EQ(encode_value(x, {}, datatype).bytes(), 96U + 4U);
  EXPECT_EQ(encode_value(x, {.groups = 4}, datatype).bytes(), 96U + 16U);
  // The quantiles 0.005 and 0.995 of 256 values lie between the 2nd and 3rd value from either end: 4
  // outliers.
  const EncodedVector with_outliers = encode_value(x, {.outlier_fraction = 0.01}, datatype);
  EXPECT_EQ(with_outliers.outliers.size(), 4U);
  EXPECT_EQ(with_outliers.bytes(), 96U + 4U + 2U + 4U * 4U);
  EncodedVector wide = with_outliers;
  wide.channels = 65536;
  EXPECT_EQ(wide.bytes(), 96U + 4U + 4U + 4U * 6U);
}

TEST(VectorCodec, OutliersComeBackAsTheirFp16Value) {
  std::vector<float> x = normal_values(128, 9);
  x[17] = 1e4F;
  x[90] = -321.123F;
  const Datatype datatype = make_datatype(kNuq2);
  const EncodedVector encoded = encode_value(x, {.outlier_fraction = 0.02}, datatype);
  const std::vector<float> back = decode_value(encoded, datatype);
  EXPECT_EQ(back[17], 1e4F);
  EXPECT_EQ(back[90], as_half(-321.123F));
  // The one value of 1e4 does not widen the range of the others.
  EXPECT_LT(codec::half_to_float(encoded.affines.at(0).scale), 10.0F);
  for (std::size_t i = 1; i < encoded.outliers.size(); ++i) {
    EXPECT_LT(encoded.outliers[i - 1].index, encoded.outliers[i].index);
  }
  // Without outliers the range is that of the extremes.
  const EncodedVector plain = encode_value(x, {}, datatype);
  EXPECT_EQ(codec::half_to_float(plain.affines.at(0).scale), as_half((1e4F + 321.123F) / 2));
}

TEST(VectorCodec, GroupsAreEncodedAsIfAlone) {
  std::vector<float> x = normal_values(64, 11);
  for (std::size_t c = 32; c < 64; ++c) x[c] *= 100;
  const Datatype datatype = make_datatype(kNuq3, {.scale = 1.1F, .offset = -0.01F});
  const ValueOptions options{.outlier_fraction = 0.1, .groups = 2};
  const std::vector<float> both = decode_value(encode_value(x, options, datatype), datatype);
  for (const std::size_t first : {std::size_t{0}, std::size_t{32}}) {
    const auto part = std::span(x).subspan(first, 32);
    const auto alone = decode_value(encode_value(part, {.outlier_fraction = 0.1}, datatype), datatype);
    for (std::size_t c = 0; c < 32; ++c) EXPECT_EQ(both[first + c], alone[c]);
  }
}

TEST(VectorCodec, EqualValuesDequantiseToZeroPoint) {
  const std::vector<float> x(24, 3.14159F);
  for (const double fraction : {0.0, 0.1}) {
    const Datatype datatype = make_datatype(kNuq2, {.scale = 1.5F, .offset = 0.3F});
    const EncodedVector encoded = encode_value(x, {.outlier_fraction = fraction}, datatype);
    EXPECT_EQ(encoded.affines.at(0).scale, 0);
    EXPECT_TRUE(encoded.outliers.empty());
    for (const float value : decode_value(encoded, datatype)) EXPECT_EQ(value, as_half(3.14159F));
  }
}

TEST(VectorCodec, RangeThatRoundsToZeroIsDegenerate) {
  // Half of fp16's smallest denormal, 2^-25, is a tie that rounds to 0.
  const std::vector<float> x = {-0x1p-25F, 0x1p-25F, 0, 0};
  const Datatype datatype = make_datatype(kNuq2);
  for (const float value : decode_value(encode_value(x, {}, datatype), datatype)) EXPECT_EQ(value, 0.0F);
}

TEST(VectorCodec, KeysFollowTheDefinition) {
  const std::vector<float> lower = {-1.003F, 2.0F, 5.0F, -7.0F};
  const std::vector<float> upper = {3.007F, 2.5F, 5.0F, 9.0F};
  const std::vector<float> x = {0.4F, 2.6F, 5.5F, -8.0F};
  const QNorm qnorm{.scale = 0.9F, .offset = 0.05F};
  const Datatype datatype = make_datatype(kNuq2, qnorm);
  const KeyNormaliser normaliser(lower, upper, 0.01);
  const EncodedVector encoded = encode_key(x, normaliser, datatype);
  // Channels 1, 2 and 3 lie outside their thresholds.
  const std::vector<Outlier> outliers = {
      {1, codec::float_to_half(2.6F)}, {2, codec::float_to_half(5.5F)}, {3, codec::float_to_half(-8.0F)}};
  EXPECT_EQ(encoded.outliers, outliers);
  EXPECT_EQ(encoded.bytes(), 1U + 2U + 3U * 4U);
  const std::vector<float> back = decode_key(encoded, normaliser, datatype);
  // (0.4 - 1.002) / 2.005 = -0.300: the centroid -0.25.
  const float level = kNuq2[1] * qnorm.scale + qnorm.offset;
  EXPECT_EQ(back[0], level * as_half(2.005F) + as_half(1.002F));
  EXPECT_EQ(back[1], as_half(2.6F));
}

TEST(VectorCodec, WithoutOutliersWhatLiesBeyondTakesTheEndCentroid) {
  const std::vector<float> lower = {-1, 5};
  const std::vector<float> upper = {1, 5};
  const KeyNormaliser normaliser(lower, upper, 0);
  const Datatype datatype = make_datatype(kNuq2);
  const EncodedVector encoded = encode_key(std::vector<float>{70, 6}, normaliser, datatype);
  EXPECT_TRUE(encoded.outliers.empty());
  EXPECT_EQ(decode_key(encoded, normaliser, datatype), (std::vector<float>{1, 5}));
}

TEST(VectorCodec, RefusesWhatIsNotFiniteNamingTheChannel) {
  const Datatype datatype = make_datatype(kNuq2);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const std::vector<float> x = {0, 1, bad, 3};
    EXPECT_NE(refusal([&] { (void)encode_value(x, {}, datatype); }).find("channel 2"), std::string::npos);
    const KeyNormaliser normaliser(std::vector<float>(4, -1.0F), std::vector<float>(4, 1.0F), 0);
    EXPECT_NE(refusal([&] { (void)encode_key(x, normaliser, datatype); }).find("channel 2"),
              std::string::npos);
    std::vector<float> upper(4, 1.0F);
    upper[3] = bad;
    const auto make = [&] { KeyNormaliser(std::vector<float>(4, -1.0F), upper, 0); };
    EXPECT_NE(refusal(make).find("channel 3"), std::string::npos);
  }
}

TEST(VectorCodec, RefusesOverflowOfFp16NamingTheChannel) {
  const Datatype datatype = make_datatype(kNuq2);
  std::vector<float> x(100, 1.0F);
  x[2] = 7e4F;
  // As an outlier; as the zero of a group (as the range 7e4 / 2 it fits).
  EXPECT_NE(refusal([&] { (void)encode_value(x, {.outlier_fraction = 0.1}, datatype); }).find("channel 2"),
            std::string::npos);
  x[3] = -7e4F;
  EXPECT_NE(refusal([&] { (void)encode_value(x, {}, datatype); }).find("channel 0"), std::string::npos);
  const auto make = [] { KeyNormaliser(std::vector<float>{0, 66000}, std::vector<float>{1, 66001}, 0); };
  EXPECT_NE(refusal(make).find("channel 1"), std::string::npos);
}

TEST(VectorCodec, RefusesSizesThatDisagree) {
  const Datatype datatype = make_datatype(kNuq2);
  const KeyNormaliser normaliser(std::vector<float>(4, -1.0F), std::vector<float>(4, 1.0F), 0);
  const std::vector<float> x(8, 0.5F);
  EXPECT_THROW((void)encode_key(x, normaliser, datatype), base::InvalidInput);
  EXPECT_THROW(KeyNormaliser(std::vector<float>(4), std::vector<float>(5), 0), base::InvalidInput);
  EXPECT_THROW(KeyNormaliser(std::vector<float>{1}, std::vector<float>{0}, 0), base::InvalidInput);
  EXPECT_THROW((void)encode_value(x, {.groups = 3}, datatype), base::WrongUsage);
  EXPECT_THROW((void)encode_value(x, {.groups = 0}, datatype), base::WrongUsage);
  EXPECT_THROW((void)encode_value({}, {}, datatype), base::WrongUsage);
  EXPECT_THROW((void)encode_value(x, {.outlier_fraction = 0.5}, datatype), base::WrongUsage);
  EXPECT_THROW((void)encode_value(x, {.outlier_fraction = std::nan("")}, datatype), base::WrongUsage);
}

TEST(VectorCodec, DecodingRefusesPartsThatDisagree) {
  const Datatype datatype = make_datatype(kNuq2);
  const EncodedVector good = encode_value(normal_values(64, 2), {.outlier_fraction = 0.1}, datatype);
  EncodedVector bad = good;
  bad.outliers.at(0).index = 64;
  EXPECT_THROW((void)decode_value(bad, datatype), base::InvalidInput);
  bad = good;
  bad.codes.pop_back();
  EXPECT_THROW((void)decode_value(bad, datatype), base::InvalidInput);
  bad = good;
  bad.affines.clear();
  EXPECT_THROW((void)decode_value(bad, datatype), base::InvalidInput);
  EXPECT_THROW((void)decode_value(good, make_datatype(kNuq3)), base::InvalidInput);
}

}  // namespace
}  // namespace kvcal::codec
