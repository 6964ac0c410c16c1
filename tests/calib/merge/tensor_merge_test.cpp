#include "calib/merge/tensor_merge.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "formats/sample_codebook.h"

namespace kvcal::calib {
namespace {

using formats::TensorCodebook;
using formats::ThresholdScope;

const RunSample kSample{1000, 1010, 1};

// Numbers spread evenly between the thresholds, or as far beyond the end levels of fitted ranges as these reach, and the best levels for them.
TensorCodebook evenly_spread(TensorCodebook tensor) {
  for (formats::OutlierSet& set : tensor.outliers) {
    set.histogram.assign(formats::kHistogramBins, 1.0F / formats::kHistogramBins);
    for (formats::Datatype& datatype : set.datatypes) {
      const auto count = static_cast<float>(datatype.centroids.size());
      const float gap = 2 / (datatype.has_ranges() ? count - 1 : count);
      const float first = datatype.has_ranges() ? -1 : -1 + gap / 2;
      for (std::size_t k = 0; k < datatype.centroids.size(); ++k)
        datatype.centroids[k] = first + static_cast<float>(k) * gap;
      if (!datatype.has_ranges()) continue;
      datatype.histogram.assign(formats::kHistogramBins, 2 / (2 + gap) / formats::kHistogramBins);
      datatype.histogram.front() += gap / 2 / (2 + gap);
      datatype.histogram.back() += gap / 2 / (2 + gap);
    }
  }
  return tensor;
}

TensorCodebook keys(float seed = 1) {
  return evenly_spread(formats::testing::sample_tensor({"key", 2, 4, ThresholdScope::channel}, seed));
}
TensorCodebook values(float seed = 1) {
  return evenly_spread(formats::testing::sample_tensor({"value", 2, 4, ThresholdScope::token}, seed));
}

MergedTensor merged(const std::vector<TensorCodebook>& runs, const std::vector<RunSample>& samples) {
  std::vector<const TensorCodebook*> pointers;
  for (const TensorCodebook& run : runs) pointers.push_back(&run);
  return merge_tensors(pointers, samples, {});
}

// Levels in the units of x, which are what a quantiser is.
std::vector<double> places(const TensorCodebook& tensor, std::size_t set, std::size_t datatype) {
  const formats::Datatype& type = tensor.outliers[set].datatypes[datatype];
  std::vector<double> found;
  for (std::size_t c = 0; c < std::max<std::size_t>(1, type.scale.size()); ++c) {
    for (const float level : type.centroids)
      found.push_back(type.has_ranges() ? double{type.scale[c]} * double{level} + double{type.zero[c]}
                                        : double{level});
  }
  return found;
}

TEST(TensorMerge, OfARunWithItselfIsTheSameOfTwiceTheSample) {
  for (const TensorCodebook& run : {keys(), values()}) {
    const TensorCodebook twice = merged({run, run}, {kSample, kSample}).codebook;
    for (std::size_t c = 0; c < run.fisher_channel.size(); ++c)
      EXPECT_EQ(twice.fisher_channel[c], 2 * run.fisher_channel[c]);
    EXPECT_EQ(twice.rotation_block, run.rotation_block);
    for (std::size_t s = 0; s < run.outliers.size(); ++s) {
      EXPECT_EQ(twice.outliers[s].lower, run.outliers[s].lower);
      EXPECT_EQ(twice.outliers[s].upper, run.outliers[s].upper);
      for (std::size_t bin = 0; bin < run.outliers[s].histogram.size(); ++bin)
        EXPECT_NEAR(twice.outliers[s].histogram[bin], run.outliers[s].histogram[bin], 1e-8);
      for (std::size_t d = 0; d < run.outliers[s].datatypes.size(); ++d) {
        const formats::Datatype &one = run.outliers[s].datatypes[d], &both = twice.outliers[s].datatypes[d];
        EXPECT_NEAR(both.objective, 2 * one.objective, 1e-6 * one.objective);
        EXPECT_EQ(both.lower_bound, 0);
        EXPECT_NEAR(both.qnorm_scale, one.qnorm_scale, 1e-15);
        const std::vector<double> expected = places(run, s, d), found = places(twice, s, d);
        ASSERT_EQ(found.size(), expected.size());
        for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-5) << i;
      }
    }
    ASSERT_TRUE(twice.magnitudes);
    EXPECT_EQ(twice.magnitudes->cached.channel.quantiles, run.magnitudes->cached.channel.quantiles);
    EXPECT_EQ(twice.magnitudes->rotated.has_value(), run.magnitudes->rotated.has_value());
    for (std::size_t i = 0; i < run.magnitudes->cached.head.best.size(); ++i)
      EXPECT_FLOAT_EQ(twice.magnitudes->cached.head.best[i], run.magnitudes->cached.head.best[i]);
    // Half of a sample twice as large differs less from the other half.
    EXPECT_NEAR(twice.halves.threshold_shift, run.halves.threshold_shift / std::sqrt(2.0), 1e-12);
    EXPECT_NEAR(twice.halves.datatype_excess, run.halves.datatype_excess / 2, 1e-12);
  }
}

TEST(TensorMerge, AddsSensitivitiesInOneUnit) {
  const TensorCodebook both = merged({keys(1), keys(4)}, {kSample, {1000, 1010, 0.25}}).codebook;
  for (std::size_t c = 0; c < both.fisher_channel.size(); ++c)
    EXPECT_FLOAT_EQ(both.fisher_channel[c], keys(1).fisher_channel[c] + keys(4).fisher_channel[c] / 4);
}

TEST(TensorMerge, ThresholdsWithoutOutliersAreTheEndsAndOthersLieBetween) {
  const TensorCodebook first = keys(1), second = keys(4);
  const MergedTensor found = merged({first, second}, {kSample, {3000, 3010, 1}});
  const auto& ends = found.codebook.outliers[0];
  const auto& some = found.codebook.outliers[1];
  for (std::size_t c = 0; c < ends.lower.size(); ++c) {
    EXPECT_EQ(ends.lower[c], second.outliers[0].lower[c]);
    EXPECT_EQ(ends.upper[c], second.outliers[0].upper[c]);
    EXPECT_LE(second.outliers[1].lower[c], some.lower[c]);
    EXPECT_LE(some.lower[c], first.outliers[1].lower[c]);
  }
  // All channels' thresholds lie 3 apart on either side.
  double sum = 0, widest = 0;
  for (std::size_t c = 0; c < some.lower.size(); ++c) {
    const double spread = 2 * 3 / (double{some.upper[c]} - double{some.lower[c]});
    sum += spread, widest = std::max(widest, spread);
  }
  EXPECT_NEAR(found.nearness.threshold_spread, sum / static_cast<double>(some.lower.size()), 1e-6);
  EXPECT_NEAR(found.nearness.widest_spread, widest, 1e-6);
  EXPECT_EQ(found.codebook.magnitudes->cached.channel.quantiles.back(),
            second.magnitudes->cached.channel.quantiles.back());
}

TEST(TensorMerge, ErrorsAreThoseOfTheRunsAndMore) {
  const MergedTensor found = merged({values(1), values(4)}, {kSample, kSample});
  ASSERT_EQ(found.nearness.errors.size(), 4U);
  for (const MergedError& error : found.nearness.errors) {
    EXPECT_NEAR(error.own, 12.5 + 1 + 12.5 + 4, 1e-9);
    EXPECT_NEAR(error.excess, 0, 1e-9);  // they have the same levels
  }
  EXPECT_EQ(found.nearness.errors[1].datatype.name(), "nuq3");
  EXPECT_EQ(found.nearness.threshold_spread, 0);
}

// Sensitivities that were all zero say nothing beside others.
TEST(TensorMerge, WeightsThatAreNoneGiveWayToThoseThatAre) {
  TensorCodebook blind = values(4);
  for (formats::OutlierSet& set : blind.outliers) {
    std::fill(set.histogram.begin(), set.histogram.begin() + 64, 0.0F);
    for (formats::Datatype& datatype : set.datatypes) {
      datatype.weights = "uniform";
      for (float& level : datatype.centroids) level /= 2;
    }
  }
  TensorCodebook run = values(1);
  for (formats::OutlierSet& set : run.outliers) {
    for (formats::Datatype& datatype : set.datatypes) datatype.weights = "fisher";
  }
  const TensorCodebook both = merged({blind, run}, {kSample, kSample}).codebook;
  for (std::size_t i = 0; i < 8; ++i)
    EXPECT_NEAR(both.outliers[0].datatypes[1].centroids[i], run.outliers[0].datatypes[1].centroids[i], 1e-6);
  EXPECT_EQ(both.outliers[0].datatypes[1].weights, "fisher");
  for (std::size_t bin = 0; bin < both.outliers[0].histogram.size(); ++bin)
    EXPECT_NEAR(both.outliers[0].histogram[bin], run.outliers[0].histogram[bin], 1e-8);
  EXPECT_NEAR(both.outliers[0].datatypes[1].objective, 13.5, 1e-9);
}

// Where all sensitivities are zero every number's normalised error counts the same: in channels ten times as wide as much as in these.
TEST(TensorMerge, WithoutSensitivitiesErrorsAreOfNormalisedNumbers) {
  const auto error_of = [](float width, double factor) {
    std::vector<TensorCodebook> blind = {keys(1), keys(1)};
    for (TensorCodebook& run : blind) {
      for (formats::OutlierSet& set : run.outliers) {
        for (float& x : set.lower) x *= width;
        for (float& x : set.upper) x *= width;
        for (formats::Datatype& datatype : set.datatypes) {
          datatype.weights = "uniform";
          datatype.scale.clear(), datatype.zero.clear(), datatype.histogram.clear();
        }
      }
      run = evenly_spread(std::move(run));
    }
    // The second run's numbers lie in the middle half, with the best levels for that.
    formats::OutlierSet& set = blind[1].outliers[0];
    set.histogram.assign(formats::kHistogramBins, 0);
    std::fill(set.histogram.begin() + 32, set.histogram.begin() + 96, 1.0F / 64);
    for (float& level : set.datatypes[1].centroids) level /= 2;
    return merged(blind, {kSample, {1000, 1010, factor}}).nearness.errors[1];
  };
  const MergedError error = error_of(1, 1);
  EXPECT_GT(error.excess, 0);
  EXPECT_NEAR(error.own, 2 * 13.5, 1e-9);
  EXPECT_NEAR(error_of(10, 1).excess / error.excess, 1, 1e-4);
  // No gradients are in them that other lengths of windows would bear on.
  EXPECT_EQ(error_of(1, 16).own, error.own);
  EXPECT_EQ(error_of(1, 16).excess, error.excess);
}

TEST(TensorMerge, WhatCantBeMergedSaysWhy) {
  EXPECT_EQ(merge_difference(keys(1), keys(2)), "");
  TensorCodebook fewer = keys();
  fewer.outliers[1].datatypes.pop_back();
  const std::string all = "2 heads of 4, thresholds by channel, nuq2, nuq3, nuq2-1%, nuq3-1%",
                    rest =
                        ", with sinks nuq2, nuq3, nuq2-1%, nuq3-1%, thresholds after RoPE, magnitudes, those "
                        "after RoPE, those at "
                        "any position";
  EXPECT_EQ(merge_difference(keys(), fewer),
            "holds 2 heads of 4, thresholds by channel, nuq2, nuq3, nuq2-1%" + rest +
                "; the first codebook holds " + all + rest);
  TensorCodebook unlike = keys();
  unlike.with_sinks[0].datatypes.pop_back();
  EXPECT_NE(merge_difference(keys(), unlike), "");
  unlike = keys();
  unlike.magnitudes->envelope.reset();
  EXPECT_NE(merge_difference(keys(), unlike), "");
  unlike = keys();
  unlike.outliers[1].fraction = 0.0100000001;
  EXPECT_NE(merge_difference(keys(), unlike).find("sixth digit"), std::string::npos);
  TensorCodebook turned = values();
  turned.rotation_block = 2;
  EXPECT_NE(merge_difference(values(), turned).find("turned in blocks of 2"), std::string::npos);
  EXPECT_EQ(merge_obstacle(keys()), "");
  TensorCodebook old = keys();
  old.outliers[0].histogram.clear();
  EXPECT_NE(merge_obstacle(old).find("without a histogram"), std::string::npos);
  old = keys();
  old.with_sinks[0].datatypes[0].histogram.clear();
  EXPECT_NE(merge_obstacle(old).find("without a histogram"), std::string::npos);
  TensorCodebook crossed = keys();
  crossed.outliers[1].lower[3] = crossed.outliers[0].lower[3] - 1;
  EXPECT_NE(merge_obstacle(crossed).find("beyond those of 0"), std::string::npos);
}

TEST(TensorMerge, ThresholdsBeyondHalfPrecisionAreRefused) {
  TensorCodebook low = keys(), high = keys();
  low.outliers[0].lower[5] = -120000, low.outliers[0].upper[5] = 0;
  high.outliers[0].lower[5] = 0, high.outliers[0].upper[5] = 120000;
  try {
    (void)merged({low, high}, {kSample, kSample});
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("channel 5"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace kvcal::calib
