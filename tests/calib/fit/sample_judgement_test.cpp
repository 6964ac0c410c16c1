#include "calib/fit/sample_judgement.h"

#include <gtest/gtest.h>

namespace kvcal::calib {
namespace {

formats::TensorCodebook tensor(double objective, double shift, double excess) {
  formats::TensorCodebook result;
  formats::Datatype datatype;
  datatype.bits = 3;
  datatype.objective = objective;
  formats::OutlierSet set;
  set.datatypes = {datatype};
  result.outliers = {set};
  result.halves = {shift, excess};
  return result;
}

formats::TensorCodebook named(const std::string& name, formats::ThresholdScope thresholds,
                              formats::TensorCodebook tensor) {
  tensor.tensor = {name, 1, 1, thresholds};
  return tensor;
}

formats::Codebook two_layers(const formats::TensorCodebook& first_key,
                             const formats::TensorCodebook& second_key,
                             const formats::TensorCodebook& value) {
  formats::Codebook codebook;
  codebook.calibration.samples = 16;
  codebook.layers.resize(2);
  codebook.layers[1].index = 1;
  codebook.layers[0].tensors = {named("key", formats::ThresholdScope::channel, first_key),
                                named("value", formats::ThresholdScope::token, value)};
  codebook.layers[1].tensors = {named("key", formats::ThresholdScope::channel, second_key),
                                named("value", formats::ThresholdScope::token, value)};
  return codebook;
}

TEST(SampleDifference, ALayerCountsByTheErrorItLeaves) {
  const auto difference =
      sample_difference(two_layers(tensor(3, 0.2, 0.1), tensor(1, 0.4, 0.5), tensor(2, 0, 0)));
  EXPECT_DOUBLE_EQ(difference.threshold_shift, (3 * 0.2 + 1 * 0.4) / 4);
  EXPECT_DOUBLE_EQ(difference.datatype_excess, (3 * 0.1 + 1 * 0.5) / 8);
}

TEST(SampleDifference, OnlyThresholdsOfChannelsShiftWhateverTheTensorIsCalled) {
  formats::Codebook codebook = two_layers(tensor(1, 0.2, 0), tensor(1, 0.2, 0), tensor(1, 0.9, 0));
  codebook.layers[0].tensors.push_back(named("gate", formats::ThresholdScope::channel, tensor(2, 0.6, 0.3)));
  const auto difference = sample_difference(codebook);
  EXPECT_DOUBLE_EQ(difference.threshold_shift, (0.2 + 0.2 + 2 * 0.6) / 4);
  EXPECT_DOUBLE_EQ(difference.datatype_excess, 2 * 0.3 / 6);
}

TEST(SampleDifference, IsZeroWhereNothingWasWeighed) {
  formats::Codebook codebook = two_layers(tensor(1, 1, 1), tensor(1, 1, 1), tensor(1, 1, 1));
  for (formats::LayerCodebook& layer : codebook.layers) {
    layer.key().outliers[0].datatypes[0].weights = "uniform";
    layer.value().outliers[0].datatypes[0].weights = "uniform";
  }
  EXPECT_EQ(sample_difference(codebook).threshold_shift, 0);
  EXPECT_EQ(sample_difference(codebook).datatype_excess, 0);
}

TEST(SampleAdvice, SaysHowManySamplesToTry) {
  const auto even = [](double shift, double excess) {
    return advise_by_halves(
        two_layers(tensor(1, shift, excess), tensor(1, shift, excess), tensor(1, 0, excess)));
  };
  EXPECT_TRUE(even(kThresholdShiftLimit, kDatatypeExcessLimit).empty());
  // Twice the shift takes four times the samples, three times the excess three times.
  const auto shifted = even(2 * kThresholdShiftLimit, 0);
  ASSERT_EQ(shifted.size(), 1U);
  EXPECT_EQ(shifted[0].samples, 64);
  const auto excessive = even(0, 3 * kDatatypeExcessLimit);
  ASSERT_EQ(excessive.size(), 1U);
  EXPECT_EQ(excessive[0].samples, 48);
}

TEST(SampleAdvice, FiftyValuesBeyondEachThreshold) {
  EXPECT_TRUE(advise_by_size(10, 10000, {0, 0.01}).empty());
  const auto advice = advise_by_size(10, 5000, {0, 0.01, 0.001});
  ASSERT_EQ(advice.size(), 2U);
  EXPECT_EQ(advice[0].samples, 21);
  EXPECT_EQ(advice[1].samples, 201);
}

TEST(SampleAdvice, IsOneNumber) {
  EXPECT_TRUE(sample_warning({}).empty());
  const auto warning = sample_warning({{"first", 7}, {"second", 40}, {"third", 15}});
  ASSERT_EQ(warning.size(), 1U);
  EXPECT_EQ(warning[0], "the sample is small: first; second; third: try --samples 40");
}

TEST(JudgeFits, NamesEveryFitWithoutSensitivities) {
  formats::Codebook codebook = two_layers(tensor(1, 0, 0), tensor(1, 0, 0), tensor(1, 0, 0));
  EXPECT_TRUE(judge_fits(codebook).empty());
  codebook.layers[1].value().outliers[0].datatypes[0].weights = "uniform";
  const auto warnings = judge_fits(codebook);
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_TRUE(warnings[0].starts_with("layer 1, values, outlier fraction 0: ")) << warnings[0];
}

}  // namespace
}  // namespace kvcal::calib
