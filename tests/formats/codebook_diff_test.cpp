#include "formats/codebook_diff.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace kvcal::formats {
namespace {

TensorCodebook tensor(const std::string& name, ThresholdScope thresholds) {
  TensorCodebook result;
  result.tensor = {name, 1, 4, thresholds};
  result.fisher_channel = {1, 2, 3, 4};
  OutlierSet set;
  set.fraction = 0.01;
  if (thresholds == ThresholdScope::channel) {
    set.lower = {-1, -2, -3, -4};
    set.upper = {1, 2, 3, 4};
  }
  Datatype datatype;
  datatype.bits = 2;
  datatype.centroids = {-1, -0.25F, 0.25F, 1};
  datatype.objective = 10;
  datatype.lower_bound = 10;
  set.datatypes = {datatype};
  result.outliers = {set};
  return result;
}

Codebook codebook() {
  Codebook result;
  result.created_by = "kvcal 1";
  result.model.name = "tiny";
  result.model.num_layers = 2;
  result.calibration.options_json = R"({"bits":[2],"seed":0})";
  result.calibration.loss = 2;
  for (int index = 0; index < 2; ++index) {
    LayerCodebook layer;
    layer.index = index;
    layer.tensors = {tensor("key", ThresholdScope::channel), tensor("value", ThresholdScope::token)};
    result.layers.push_back(layer);
  }
  return result;
}

TEST(CodebookDiff, EqualCodebooksHaveNoDifferenceAndCreatorsDoNotCount) {
  Codebook other = codebook();
  other.created_by = "kvcal 2";
  other.content_sha256 = "covers created_by";
  EXPECT_TRUE(diff_codebooks(codebook(), other).empty());
}

TEST(CodebookDiff, ProvenanceComesFirstAndNamesTheOption) {
  Codebook other = codebook();
  other.layers[1].value().fisher_channel[2] = 5;
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
  Codebook other = codebook();
  other.layers[0].key().outliers[0].upper = {1, 2, 3.5F, 4.25F};
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
  Codebook other = codebook();
  other.layers[1].value().outliers[0].datatypes[0].centroids[1] = std::nextafter(-0.25F, 0.0F);
  const auto differences = diff_codebooks(codebook(), other);
  ASSERT_EQ(differences.size(), 1);
  EXPECT_EQ(differences[0].path, "/layers/0001/value/outliers_0.01/nuq2/centroids");
}

TEST(CodebookDiff, WhatOneSideLacksIsAbsentAtAnyTolerance) {
  Codebook other = codebook();
  other.layers.pop_back();
  other.layers[0].key().outliers[0].datatypes[0].bits = 3;
  other.layers[0].value().outliers[0].fraction = 0.02;
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

std::vector<std::string> paths(const std::vector<Difference>& differences) {
  std::vector<std::string> result;
  for (const Difference& difference : differences) result.push_back(difference.path);
  return result;
}

TEST(CodebookDiff, SizesOfKeysAndValuesAreTheLayers) {
  Codebook other = codebook();
  other.layers[0].key().tensor = {"key", 2, 2, ThresholdScope::channel};
  other.layers[0].value().tensor = {"value", 2, 3, ThresholdScope::token};
  EXPECT_EQ(
      paths(diff_codebooks(codebook(), other)),
      (std::vector<std::string>{"/layers/0000/kv_heads", "/layers/0000/key_dim", "/layers/0000/value_dim"}));
}

TEST(CodebookDiff, SizesOfOtherTensorsAreTheirOwn) {
  Codebook left = codebook();
  left.layers[0].tensors.push_back(tensor("gate", ThresholdScope::token));
  Codebook right = left;
  right.layers[0].tensors.back().tensor = {"gate", 2, 2, ThresholdScope::channel};
  right.layers[0].tensors.back().fisher_channel[3] = 5;
  EXPECT_EQ(paths(diff_codebooks(left, right)),
            (std::vector<std::string>{"/layers/0000/gate/heads", "/layers/0000/gate/dim",
                                      "/layers/0000/gate/thresholds", "/layers/0000/gate/fisher_channel"}));
}

TEST(CodebookDiff, KeysAndValuesThatDoNotShareTheirHeadsHaveSizesOfTheirOwn) {
  Codebook other = codebook();
  other.layers[0].value().tensor.heads = 2;
  EXPECT_EQ(paths(diff_codebooks(codebook(), other)), std::vector<std::string>{"/layers/0000/value/heads"});
}

TEST(CodebookDiff, ATensorOfOneSideIsAbsentOnTheOther) {
  Codebook other = codebook();
  other.layers[0].tensors.push_back(tensor("gate", ThresholdScope::channel));
  other.layers[1].tensors.pop_back();
  const auto differences = diff_codebooks(codebook(), other, 1e9);
  ASSERT_EQ(differences.size(), 2);
  EXPECT_EQ(differences[0].path, "/layers/0000/gate");
  EXPECT_EQ(differences[0].left, "absent");
  EXPECT_EQ(differences[1].path, "/layers/0001/value");
  EXPECT_EQ(differences[1].right, "absent");
}

TEST(CodebookDiff, NotANumberDiffersFromANumberButNotFromItself) {
  Codebook left = codebook();
  Codebook right = codebook();
  left.calibration.loss = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(diff_codebooks(left, right, 1e9).size(), 1);
  right.calibration.loss = left.calibration.loss;
  EXPECT_TRUE(diff_codebooks(left, right).empty());
}

TEST(CodebookDiff, TextsWithTheSameBeginningOfTheHashDiffer) {
  Codebook left = codebook();
  Codebook right = codebook();
  left.calibration.texts = {{"a.txt", "0123456789abcdef0"}};
  right.calibration.texts = {{"a.txt", "0123456789abcdef1"}};
  const auto differences = diff_codebooks(left, right);
  ASSERT_EQ(differences.size(), 1);
  EXPECT_EQ(differences[0].path, "/calibration/texts");
}

}  // namespace
}  // namespace kvcal::formats
