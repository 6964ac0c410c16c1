#include "calib/sample_judgement.h"

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

formats::Codebook two_layers(const formats::TensorCodebook& first_key,
                             const formats::TensorCodebook& second_key,
                             const formats::TensorCodebook& value) {
  formats::Codebook codebook;
  codebook.calibration.samples = 16;
  codebook.layers.resize(2);
  codebook.layers[1].index = 1;
  codebook.layers[0].key = first_key;
  codebook.layers[1].key = second_key;
  codebook.layers[0].value = codebook.layers[1].value = value;
  return codebook;
}

TEST(SampleDifference, ALayerCountsByTheErrorItLeaves) {
  const auto difference =
      sample_difference(two_layers(tensor(3, 0.2, 0.1), tensor(1, 0.4, 0.5), tensor(2, 0, 0)));
  EXPECT_DOUBLE_EQ(difference.threshold_shift, (3 * 0.2 + 1 * 0.4) / 4);
  EXPECT_DOUBLE_EQ(difference.datatype_excess, (3 * 0.1 + 1 * 0.5) / 8);
}

TEST(SampleDifference, IsZeroWhereNothingWasWeighed) {
  formats::Codebook codebook = two_layers(tensor(1, 1, 1), tensor(1, 1, 1), tensor(1, 1, 1));
  for (formats::LayerCodebook& layer : codebook.layers) {
    layer.key.outliers[0].datatypes[0].weights = "uniform";
    layer.value.outliers[0].datatypes[0].weights = "uniform";
  }
  EXPECT_EQ(sample_difference(codebook).threshold_shift, 0);
  EXPECT_EQ(sample_difference(codebook).datatype_excess, 0);
}

TEST(JudgeSample, SaysHowManySamplesToTry) {
  const auto even = [](double shift, double excess) {
    return judge_sample(two_layers(tensor(1, shift, excess), tensor(1, shift, excess), tensor(1, 0, excess)));
  };
  EXPECT_TRUE(even(kThresholdShiftLimit, kDatatypeExcessLimit).empty());
  // Twice the shift takes four times the samples, three times the excess three times.
  const auto shifted = even(2 * kThresholdShiftLimit, 0);
  ASSERT_EQ(shifted.size(), 1U);
  EXPECT_TRUE(shifted[0].ends_with("try --samples 64")) << shifted[0];
  const auto excessive = even(0, 3 * kDatatypeExcessLimit);
  ASSERT_EQ(excessive.size(), 1U);
  EXPECT_TRUE(excessive[0].ends_with("try --samples 48")) << excessive[0];
}

TEST(JudgeFits, NamesEveryFitWithoutSensitivities) {
  formats::Codebook codebook = two_layers(tensor(1, 0, 0), tensor(1, 0, 0), tensor(1, 0, 0));
  EXPECT_TRUE(judge_fits(codebook).empty());
  codebook.layers[1].value.outliers[0].datatypes[0].weights = "uniform";
  const auto warnings = judge_fits(codebook);
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_TRUE(warnings[0].starts_with("layer 1, values, outlier fraction 0: ")) << warnings[0];
}

}  // namespace
}  // namespace kvcal::calib
