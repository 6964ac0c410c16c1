#include "calib/codebook_diff.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace kvcal::calib {
namespace {

formats::TensorCodebook tensor(bool is_key) {
  formats::TensorCodebook result;
  result.fisher_channel = {1, 2, 3, 4};
  formats::OutlierSet set;
  set.fraction = 0.01;
  if (is_key) {
    set.lower = {-1, -2, -3, -4};
    set.upper = {1, 2, 3, 4};
  }
  formats::Datatype datatype;
  datatype.bits = 2;
  datatype.centroids = {-1, -0.25F, 0.25F, 1};
  datatype.objective = 10;
  datatype.lower_bound = 10;
  set.datatypes = {datatype};
  result.outliers = {set};
  return result;
}

formats::Codebook codebook() {
  formats::Codebook result;
  result.created_by = "kvcal 1";
  result.model.name = "tiny";
  result.model.num_layers = 2;
  result.calibration.options_json = R"({"bits":[2],"seed":0})";
  result.calibration.loss = 2;
  for (int index = 0; index < 2; ++index) {
    formats::LayerCodebook layer;
    layer.index = index;
    layer.kv_heads = 1;
    layer.key_dim = layer.value_dim = 4;
    layer.key = tensor(true);
    layer.value = tensor(false);
    result.layers.push_back(layer);
  }
  return result;
}

TEST(CodebookDiff, EqualCodebooksHaveNoDifferenceAndCreatorsDoNotCount) {
  formats::Codebook other = codebook();
  other.created_by = "kvcal 2";
  other.content_sha256 = "covers created_by";
  EXPECT_TRUE(diff_codebooks(codebook(), other).empty());
}

TEST(CodebookDiff, ProvenanceComesFirstAndNamesTheOption) {
  formats::Codebook other = codebook();
  other.layers[1].value.fisher_channel[2] = 5;
  other.calibration.options_json = R"({"seed":7,"bits":[2]})";
  other.model.name = "other";
  const auto differences = diff_codebooks(codebook(), other);
  ASSERT_EQ(differences.size(), 3);
  EXPECT_EQ(differences[0].path, "/model/name");
  EXPECT_EQ(differences[1].path, "/calibration/options/seed");
  EXPECT_EQ(differences[1].left, "0");
  EXPECT_EQ(differences[1].right, "7");
  EXPECT_EQ(differences[2].path, "/layers/0001/value/fisher_channel");
}

TEST(CodebookDiff, MagnitudeIsTheLargestDifferenceOverTheLargestValueOfTheArray) {
  formats::Codebook other = codebook();
  other.layers[0].key.outliers[0].upper = {1, 2, 3.5F, 4.25F};
  const auto differences = diff_codebooks(codebook(), other);
  ASSERT_EQ(differences.size(), 1);
  EXPECT_EQ(differences[0].path, "/layers/0000/key/outliers_0.01/upper");
  EXPECT_DOUBLE_EQ(differences[0].magnitude, 0.5 / 4.25);
  EXPECT_EQ(differences[0].left, "[2] 3");
  EXPECT_EQ(differences[0].right, "[2] 3.5");
  EXPECT_TRUE(diff_codebooks(codebook(), other, 0.5 / 4.25).empty());
  EXPECT_EQ(diff_codebooks(codebook(), other, 0.11).size(), 1);
}

TEST(CodebookDiff, OneCentroidOfOneDatatypeIsFound) {
  formats::Codebook other = codebook();
  other.layers[1].value.outliers[0].datatypes[0].centroids[1] = std::nextafter(-0.25F, 0.0F);
  const auto differences = diff_codebooks(codebook(), other);
  ASSERT_EQ(differences.size(), 1);
  EXPECT_EQ(differences[0].path, "/layers/0001/value/outliers_0.01/nuq2/centroids");
}

TEST(CodebookDiff, WhatOneSideLacksIsAbsentAtAnyTolerance) {
  formats::Codebook other = codebook();
  other.layers.pop_back();
  other.layers[0].key.outliers[0].datatypes[0].bits = 3;
  other.layers[0].value.outliers[0].fraction = 0.02;
  const auto differences = diff_codebooks(codebook(), other, 1e9);
  ASSERT_EQ(differences.size(), 5);
  EXPECT_EQ(differences[0].path, "/layers/0000/key/outliers_0.01/nuq2");
  EXPECT_EQ(differences[0].right, "absent");
  EXPECT_EQ(differences[1].path, "/layers/0000/key/outliers_0.01/nuq3");
  EXPECT_EQ(differences[1].left, "absent");
  EXPECT_EQ(differences[2].path, "/layers/0000/value/outliers_0.01");
  EXPECT_EQ(differences[3].path, "/layers/0000/value/outliers_0.02");
  EXPECT_EQ(differences[4].path, "/layers/0001");
  for (const Difference& difference : differences) EXPECT_TRUE(std::isinf(difference.magnitude));
}

TEST(CodebookDiff, NotANumberDiffersFromANumberButNotFromItself) {
  formats::Codebook left = codebook();
  formats::Codebook right = codebook();
  left.calibration.loss = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(diff_codebooks(left, right, 1e9).size(), 1);
  right.calibration.loss = left.calibration.loss;
  EXPECT_TRUE(diff_codebooks(left, right).empty());
}

TEST(CodebookDiff, TextsWithTheSameBeginningOfTheHashDiffer) {
  formats::Codebook left = codebook();
  formats::Codebook right = codebook();
  left.calibration.texts = {{"a.txt", "0123456789abcdef0"}};
  right.calibration.texts = {{"a.txt", "0123456789abcdef1"}};
  const auto differences = diff_codebooks(left, right);
  ASSERT_EQ(differences.size(), 1);
  EXPECT_EQ(differences[0].path, "/calibration/texts");
}

}  // namespace
}  // namespace kvcal::calib
