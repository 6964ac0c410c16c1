#include "cuda/kernels/codec_math.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "base/error.h"
#include "cuda/vector_codec.h"

namespace kvcal::codec {
namespace {

std::vector<float> random_centroids(std::size_t count, std::mt19937& random) {
  // Multiples of 2^-10: sums and halves of two of them are exact in float32, so that a tie is a tie.
  std::uniform_int_distribution<int> grid(-1024, 1024);
  std::vector<float> centroids(count);
  for (float& centroid : centroids) centroid = static_cast<float>(grid(random)) / 1024.0F;
  std::sort(centroids.begin(), centroids.end());
  return centroids;
}

// The nearest by distance, in double, the lower of two at the same distance.
float brute_force(float u, const std::vector<float>& centroids) {
  float nearest = centroids[0];
  for (const float centroid : centroids) {
    if (std::abs(double{u} - centroid) < std::abs(double{u} - nearest)) nearest = centroid;
  }
  return nearest;
}

TEST(CodecMath, NearestCodeEqualsBruteForce) {
  std::mt19937 random(7);
  std::uniform_int_distribution<int> grid(-3 * 2048, 3 * 2048);
  for (const std::size_t count : {4, 8, 16}) {
    for (int repetition = 0; repetition < 50; ++repetition) {
      const std::vector<float> centroids = random_centroids(count, random);
      const Datatype datatype = make_datatype(centroids);
      for (int i = 0; i < 200; ++i) {
        const float u = static_cast<float>(grid(random)) / 2048.0F;
        EXPECT_EQ(centroids[nearest_code(u, datatype)], brute_force(u, centroids)) << u;
      }
    }
  }
}

TEST(CodecMath, TieTakesTheLowerCode) {
  const Datatype datatype = make_datatype(std::vector<float>{-1, -0.5F, 0.5F, 1});
  EXPECT_EQ(nearest_code(-0.75F, datatype), 0U);
  EXPECT_EQ(nearest_code(std::nextafter(-0.75F, 0.0F), datatype), 1U);
  EXPECT_EQ(nearest_code(0.0F, datatype), 1U);
  EXPECT_EQ(nearest_code(std::numeric_limits<float>::denorm_min(), datatype), 2U);
  EXPECT_EQ(nearest_code(0.75F, datatype), 2U);
  EXPECT_EQ(nearest_code(1e30F, datatype), 3U);
  EXPECT_EQ(nearest_code(-1e30F, datatype), 0U);
  EXPECT_EQ(nearest_code(std::numeric_limits<float>::quiet_NaN(), datatype), 0U);
}

TEST(CodecMath, RepeatedCentroidsDequantiseToTheNearest) {
  const std::vector<float> centroids = {-1, 0.5F, 0.5F, 0.5F};
  const Datatype datatype = make_datatype(centroids);
  for (const float u : {-1.0F, -0.25F, -0.2F, 0.5F, 0.6F}) {
    EXPECT_EQ(centroids[nearest_code(u, datatype)], brute_force(u, centroids)) << u;
  }
}

TEST(CodecMath, DequantisingIsNotFused) {
  // (1 + 2^-12)^2 - (1 + 2^-11) is 2^-24 exactly; rounding the product first loses it.
  const float a = 1.0F + 0x1p-12F;
  Datatype datatype = make_datatype(std::vector<float>{-1, 0, 0.5F, 1});
  datatype.levels[3] = a;
  EXPECT_EQ(dequantise(3, a, -(1.0F + 0x1p-11F), datatype), 0.0F);
  // The same for the levels of Q-Norm.
  const Datatype normed =
      make_datatype(std::vector<float>{-1, 0, 0.5F, a}, {.scale = a, .offset = -(1.0F + 0x1p-11F)});
  EXPECT_EQ(normed.levels[3], 0.0F);
}

TEST(CodecMath, NormaliseRoundsTheInverseFirst) {
  // 3 * rn(1/3) rounds to 1, but 5 * rn(1/41) differs from rn(5/41): the definition has the product.
  const float inverse = inverse_scale(41.0F);
  EXPECT_EQ(normalise(6.0F, 1.0F, inverse), 5.0F * (1.0F / 41.0F));
  int different = 0;
  for (int x = 1; x < 1000; ++x) {
    const auto value = static_cast<float>(x);
    if (normalise(value, 0.0F, inverse) != value / 41.0F) ++different;
  }
  EXPECT_GT(different, 0);
}

TEST(CodecMath, AffineIsHalfTheSumAndHalfTheDifference) {
  const Affine affine = affine_of(-1.0F, 3.0F);
  EXPECT_EQ(codec::half_to_float(affine.scale), 2.0F);
  EXPECT_EQ(codec::half_to_float(affine.zero), 1.0F);
  EXPECT_EQ(inverse_scale(0.0F), 0.0F);
  EXPECT_TRUE(is_finite_half(affine_of(-65504.0F, 65504.0F).scale));
  EXPECT_FALSE(is_finite_half(affine_of(-65520.0F, 65520.0F).scale));
  EXPECT_FALSE(is_finite_half(affine_of(65520.0F, 65520.0F).zero));
}

TEST(CodecMath, DatatypeRefusesBadCentroids) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW((void)make_datatype(std::vector<float>{0, 1, 2}), base::InvalidInput);
  EXPECT_THROW((void)make_datatype(std::vector<float>(32)), base::InvalidInput);
  EXPECT_THROW((void)make_datatype(std::vector<float>{0, 1, nan, 2}), base::InvalidInput);
  EXPECT_THROW((void)make_datatype(std::vector<float>{0, 1, 0.5F, 2}), base::InvalidInput);
  EXPECT_THROW((void)make_datatype(std::vector<float>{0, 1, 2, 3e38F}, {.scale = 10}), base::InvalidInput);
  EXPECT_THROW((void)make_datatype(std::vector<float>{0, 1, 2, 3}, {.scale = nan}), base::InvalidInput);
}

}  // namespace
}  // namespace kvcal::codec
