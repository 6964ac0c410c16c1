#include "formats/codebook_diff.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
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

TEST(CodebookDiff, RecipesAreComparedTensorByTensor) {
  Codebook left = codebook();
  left.recipe.emplace().tensors = {{0, "key", 2, 0.01, 0.5}, {0, "value", 2, 0.01, 0.25}};
  Codebook right = left;
  EXPECT_TRUE(diff_codebooks(left, right).empty());
  right.recipe->tensors[1].bits = kKeptBits;
  const std::vector<Difference> differences = diff_codebooks(left, right);
  ASSERT_EQ(differences.size(), 1U);
  EXPECT_EQ(differences[0].path, "/recipe/0000/value@bits");
  right.recipe.reset();
  ASSERT_EQ(diff_codebooks(left, right).size(), 1U);
  EXPECT_EQ(diff_codebooks(left, right)[0].path, "/recipe");
}

TEST(CodebookDiff, ProvenanceComesFirstAndNamesTheOption) {
  Codebook other = codebook();
  other.layers[1].value().fisher_channel[2] = 5;
  other.calibration.options_json = R"({"seed":7,"bits":[2]})";
  other.model.name = "other";
  const auto differences = diff_codebooks(codebook(), other);
  ASSERT_EQ(differences.size(), 3);
  EXPECT_EQ(differences[0].path, "/model@name");
  EXPECT_EQ(differences[1].path, "/calibration@options/seed");
  EXPECT_EQ(differences[1].left, DifferenceValue(std::int64_t{0}));
  EXPECT_EQ(differences[1].right, DifferenceValue(std::int64_t{7}));
  EXPECT_EQ(differences[2].path, "/layers/0001/value/fisher_channel");
}

TEST(CodebookDiff, MagnitudeIsTheLargestDifferenceOverTheLargestValueOfTheArray) {
  Codebook other = codebook();
  other.layers[0].key().outliers[0].upper = {1, 2, 3.5F, 4.25F};
  const auto differences = diff_codebooks(codebook(), other);
  ASSERT_EQ(differences.size(), 1);
  EXPECT_EQ(differences[0].path, "/layers/0000/key/outliers_0.01/upper");
  EXPECT_DOUBLE_EQ(differences[0].magnitude, 0.5 / 4.25);
  EXPECT_EQ(differences[0].index, 2);
  EXPECT_EQ(differences[0].left, DifferenceValue(3.0));
  EXPECT_EQ(differences[0].right, DifferenceValue(3.5));
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
  EXPECT_EQ(differences[0].right, DifferenceValue());
  EXPECT_EQ(differences[1].path, "/layers/0000/key/outliers_0.01/nuq3");
  EXPECT_EQ(differences[1].left, DifferenceValue());
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
      (std::vector<std::string>{"/layers/0000@kv_heads", "/layers/0000@key_dim", "/layers/0000@value_dim"}));
}

TEST(CodebookDiff, SizesOfOtherTensorsAreTheirOwn) {
  Codebook left = codebook();
  left.layers[0].tensors.push_back(tensor("gate", ThresholdScope::token));
  Codebook right = left;
  right.layers[0].tensors.back().tensor = {"gate", 2, 2, ThresholdScope::channel};
  right.layers[0].tensors.back().fisher_channel[3] = 5;
  EXPECT_EQ(paths(diff_codebooks(left, right)),
            (std::vector<std::string>{"/layers/0000/gate@heads", "/layers/0000/gate@dim",
                                      "/layers/0000/gate@thresholds", "/layers/0000/gate/fisher_channel"}));
}

TEST(CodebookDiff, KeysAndValuesThatDoNotShareTheirHeadsHaveSizesOfTheirOwn) {
  Codebook other = codebook();
  other.layers[0].value().tensor.heads = 2;
  EXPECT_EQ(paths(diff_codebooks(codebook(), other)), std::vector<std::string>{"/layers/0000/value@heads"});
}

TEST(CodebookDiff, ATensorOfOneSideIsAbsentOnTheOther) {
  Codebook other = codebook();
  other.layers[0].tensors.push_back(tensor("gate", ThresholdScope::channel));
  other.layers[1].tensors.pop_back();
  const auto differences = diff_codebooks(codebook(), other, 1e9);
  ASSERT_EQ(differences.size(), 2);
  EXPECT_EQ(differences[0].path, "/layers/0000/gate");
  EXPECT_EQ(differences[0].left, DifferenceValue());
  EXPECT_EQ(differences[1].path, "/layers/0001/value");
  EXPECT_EQ(differences[1].right, DifferenceValue());
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
  EXPECT_EQ(differences[0].path, "/calibration@texts");
}

TEST(CodebookDiff, AttributesAreNamedAsTheFileHasThem) {
  Codebook other = codebook();
  other.schema_minor = 4;
  other.calibration.sinks = 4;
  other.layers[0].window = 128;
  other.layers[0].key().halves.threshold_shift = 0.5;
  other.layers[0].key().outliers[0].datatypes[0].qnorm_scale = 2;
  other.layers[0].key().outliers[0].datatypes[0].weights = "uniform";
  EXPECT_EQ(paths(diff_codebooks(codebook(), other)),
            (std::vector<std::string>{"/@schema_minor", "/calibration@sinks", "/layers/0000@window",
                                      "/layers/0000/key@threshold_shift",
                                      "/layers/0000/key/outliers_0.01/nuq2/centroids@qnorm_scale",
                                      "/layers/0000/key/outliers_0.01/nuq2/centroids@weights"}));
}

TEST(CodebookDiff, OptionsHaveTheTypesOfTheirJson) {
  Codebook left = codebook();
  Codebook right = codebook();
  left.calibration.options_json =
      R"({"bits":[2],"fraction":0.5,"scope":"token","seed":18446744073709551615})";
  right.calibration.options_json = R"({"bits":[3],"fraction":0.25,"scope":"head","sinks":1})";
  const auto differences = diff_codebooks(left, right, 1e9);
  ASSERT_EQ(differences.size(), 5);
  EXPECT_EQ(differences[0].left, DifferenceValue("[2]"));
  EXPECT_EQ(differences[1].left, DifferenceValue(0.5));
  EXPECT_EQ(differences[2].right, DifferenceValue("head"));
  EXPECT_EQ(differences[3].path, "/calibration@options/seed");
  EXPECT_EQ(differences[3].left, DifferenceValue("18446744073709551615"));
  EXPECT_EQ(differences[3].right, DifferenceValue());
  EXPECT_EQ(differences[4].left, DifferenceValue());
  EXPECT_EQ(differences[4].right, DifferenceValue(std::int64_t{1}));
}

TEST(CodebookDiff, TheToleranceIsNotForCountsAndSizes) {
  Codebook left = codebook();
  Codebook right = codebook();
  left.calibration.tokens = 1000;
  right.calibration.tokens = 1001;
  right.calibration.loss = 2.001;
  EXPECT_EQ(paths(diff_codebooks(left, right, 0.01)), std::vector<std::string>{"/calibration@tokens"});
}

TEST(CodebookDiff, AFinetuneHasTheConfigAndOtherWeights) {
  Codebook other = codebook();
  EXPECT_TRUE(match_models(codebook(), other).same());
  other.model.weights_sha256 = "other";
  EXPECT_TRUE(match_models(codebook(), other).config);
  EXPECT_FALSE(match_models(codebook(), other).weights);
}

TEST(CodebookDiff, AnotherConfigOrAnotherShapeIsAnotherModel) {
  Codebook other = codebook();
  other.model.config_sha256 = "other";
  EXPECT_FALSE(match_models(codebook(), other).config);
  EXPECT_TRUE(match_models(codebook(), other).weights);
  other = codebook();
  other.model.num_layers = 3;
  EXPECT_FALSE(match_models(codebook(), other).config);
  other = codebook();
  other.layers[1].value().tensor.dim = 2;
  EXPECT_FALSE(match_models(codebook(), other).config);
  other = codebook();
  other.layers[1].tensors.push_back(tensor("gate", ThresholdScope::token));
  EXPECT_FALSE(match_models(codebook(), other).config);
}

TEST(CodebookDiff, AFileOfSomeOfTheLayersIsOfTheSameModel) {
  Codebook other = codebook();
  other.layers.pop_back();
  EXPECT_TRUE(match_models(codebook(), other).same());
}

TEST(CodebookDiff, ALayersSummaryHoldsTheLargestOfEachKind) {
  Codebook other = codebook();
  other.model.name = "other";
  other.layers[0].key().outliers[0].lower[3] = -5;                        // 1 / 5
  other.layers[0].key().outliers[0].upper[3] = 8;                         // 4 / 8
  other.layers[0].value().outliers[0].datatypes[0].centroids[1] = -0.5F;  // 0.25 / 1
  other.layers[1].key().fisher_channel[0] = 1.5F;                         // no column: 0.5 / 4
  const auto layers = summarise_layers(diff_codebooks(codebook(), other));
  ASSERT_EQ(layers.size(), 2);
  EXPECT_EQ(layers[0].layer, 0);
  EXPECT_EQ(layers[0].key_thresholds, 0.5);
  EXPECT_EQ(layers[0].key_centroids, std::nullopt);
  EXPECT_EQ(layers[0].value_centroids, 0.25);
  EXPECT_EQ(layers[0].largest(), 0.5);
  EXPECT_EQ(layers[1].layer, 1);
  EXPECT_EQ(layers[1].largest(), std::nullopt);
}

TEST(CodebookDiff, TheLargestDifferenceIsOfALayerAndFinite) {
  Codebook other = codebook();
  other.calibration.seed = 7;  // 1, of the provenance
  EXPECT_EQ(largest_difference(diff_codebooks(codebook(), other)), nullptr);
  other.layers[0].key().outliers[0].datatypes[0].weights = "uniform";  // infinite
  other.layers[0].key().outliers[0].datatypes[0].centroids[2] = 0.5F;  // 0.25
  other.layers[1].key().fisher_channel[0] = 1.5F;                      // 0.125
  const auto differences = diff_codebooks(codebook(), other);
  const Difference* largest = largest_difference(differences);
  ASSERT_NE(largest, nullptr);
  EXPECT_EQ(largest->path, "/layers/0000/key/outliers_0.01/nuq2/centroids");
  EXPECT_EQ(largest->index, 2);
}

}  // namespace
}  // namespace kvcal::formats
