#include "calib/fit/layer_fit.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>

#include "base/error.h"
#include "calib/fit/captured_rows.h"
#include "calib/fit/fit_source.h"
#include "calib/fit/qnorm.h"

namespace kvcal::calib {
namespace {

using testing::row_of;
using testing::set_number;
using testing::set_row;

constexpr int kHeads = 2;

CapturedTensor random_tensor(const char* name, formats::ThresholdScope thresholds, std::int64_t rows,
                             std::int64_t channels, unsigned seed, double gradient_scale) {
  std::mt19937 generator(seed);
  std::student_t_distribution<double> heavy(4);
  std::lognormal_distribution<double> spread(0, 2);
  CapturedTensor tensor;
  tensor.tensor = {name, kHeads, static_cast<int>(channels) / kHeads, thresholds};
  tensor.x = CapturedMatrix(thresholds, rows, channels, formats::Dtype::F32);
  tensor.gradients = CapturedMatrix(thresholds, rows, channels, formats::Dtype::F32);
  std::vector<float> x(static_cast<std::size_t>(channels)), gradients(x.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < x.size(); ++c) {
      x[c] = static_cast<float>(heavy(generator) * (1.0 + static_cast<double>(c)) + 3.0);
      gradients[c] = static_cast<float>(gradient_scale * spread(generator));
    }
    set_row(tensor.x, r, x);
    set_row(tensor.gradients, r, gradients);
  }
  return tensor;
}

LayerCapture random_capture(std::int64_t rows, std::int64_t channels, double gradient_scale = 1e-4) {
  LayerCapture capture;
  capture.layer = 5;
  capture.tensors.push_back(
      random_tensor("key", formats::ThresholdScope::channel, rows, channels, 1, gradient_scale));
  capture.tensors.push_back(
      random_tensor("value", formats::ThresholdScope::token, rows, channels, 2, gradient_scale));
  return capture;
}

const LayerConfig kLayer = {2, 2, 4, 4, "{}", 0};

using WeightedPoints = std::vector<std::pair<long double, long double>>;

/// Inliers of keys, normalised, with weights F s^2, straight from their definition.
WeightedPoints inliers(const CapturedTensor& keys, const formats::OutlierSet& set) {
  WeightedPoints points;
  for (std::int64_t r = 0; r < keys.x.tokens(); ++r) {
    for (std::size_t c = 0; c < set.lower.size(); ++c) {
      const long double x = row_of(keys.x, r)[c], lower = set.lower[c], upper = set.upper[c];
      if (x < lower || x > upper) continue;
      const long double zero = (upper + lower) / 2, range = (upper - lower) / 2;
      const long double gradient = row_of(keys.gradients, r)[c];
      points.emplace_back((x - zero) / range, gradient * gradient * range * range);
    }
  }
  return points;
}

/// The optimum by an O(k n^2) dynamic program in long double.
double plain_optimum(WeightedPoints points, int clusters) {
  std::sort(points.begin(), points.end());
  const std::size_t n = points.size();
  std::vector<long double> best(n + 1, INFINITY), next(n + 1);
  best[0] = 0;
  for (int k = 0; k < clusters; ++k) {
    for (std::size_t end = 0; end <= n; ++end) {
      next[end] = best[end];
      long double weight = 0, mean = 0, cost = 0;
      for (std::size_t begin = end; begin-- > 0;) {
        const long double w = points[begin].second;
        if (w > 0) {
          const long double shift = points[begin].first - mean;
          weight += w;
          mean += shift * w / weight;
          cost += w * shift * (points[begin].first - mean);
        }
        next[end] = std::min(next[end], best[begin] + cost);
      }
    }
    std::swap(best, next);
  }
  return static_cast<double>(best[n]);
}

TEST(LayerFit, EveryDatatypeIsTheOptimum) {
  const LayerCapture capture = random_capture(90, 8);
  const formats::LayerCodebook fit = fit_layer(capture, kLayer, FitOptions{});
  for (const double fraction : {0.0, 0.01}) {
    const auto& set = fit.key().outliers[fraction == 0 ? 0 : 1];
    EXPECT_EQ(set.fraction, fraction);
    for (const auto& datatype : set.datatypes) {
      const double optimum = plain_optimum(inliers(capture.tensors[0], set), 1 << datatype.bits);
      EXPECT_NEAR(datatype.objective, optimum, 1e-9 * optimum) << fraction << " " << datatype.bits;
      EXPECT_LE(datatype.lower_bound, datatype.objective * (1 + 1e-12));
      EXPECT_GE(datatype.lower_bound, datatype.objective * (1 - 1e-9));
    }
  }
}

/// Of keys, by the ranges of a datatype.
WeightedPoints inliers(const CapturedTensor& keys, const formats::OutlierSet& set,
                       const std::vector<double>& scale, const std::vector<double>& zero) {
  WeightedPoints points;
  for (std::int64_t r = 0; r < keys.x.tokens(); ++r) {
    for (std::size_t c = 0; c < set.lower.size(); ++c) {
      const float x = row_of(keys.x, r)[c];
      if (x < set.lower[c] || x > set.upper[c]) continue;
      const long double gradient = row_of(keys.gradients, r)[c];
      points.emplace_back((static_cast<long double>(x) - zero[c]) / scale[c],
                          gradient * gradient * scale[c] * scale[c]);
    }
  }
  return points;
}

double error_of(const WeightedPoints& points, const std::vector<float>& centroids) {
  long double sum = 0;
  for (const auto& [point, weight] : points) {
    long double least = INFINITY;
    for (const float centroid : centroids) least = std::min(least, (point - centroid) * (point - centroid));
    sum += weight * least;
  }
  return static_cast<double>(sum);
}

TEST(LayerFit, FittedRangesErrLessThanThresholds) {
  const LayerCapture capture = random_capture(90, 8);
  FitOptions options;
  const formats::LayerCodebook plain = fit_layer(capture, kLayer, options);
  options.fitted_ranges = true;
  const formats::LayerCodebook fit = fit_layer(capture, kLayer, options);
  EXPECT_EQ(fit.value(), plain.value());
  for (std::size_t s = 0; s < 2; ++s) {
    const formats::OutlierSet& set = fit.key().outliers[s];
    EXPECT_EQ(set.lower, plain.key().outliers[s].lower);
    EXPECT_EQ(set.histogram, plain.key().outliers[s].histogram);
    for (std::size_t d = 0; d < 3; ++d) {
      const formats::Datatype& datatype = set.datatypes[d];
      SCOPED_TRACE(::testing::Message() << "fraction " << set.fraction << ", bits " << datatype.bits);
      EXPECT_LT(datatype.objective, 0.95 * plain.key().outliers[s].datatypes[d].objective);
      ASSERT_EQ(datatype.scale.size(), 8U);
      EXPECT_EQ(datatype.centroids.front(), -1);
      EXPECT_EQ(datatype.centroids.back(), 1);
      EXPECT_EQ(datatype.histogram.size(), static_cast<std::size_t>(formats::kHistogramBins));
      const std::vector<double> scale(datatype.scale.begin(), datatype.scale.end());
      const std::vector<double> zero(datatype.zero.begin(), datatype.zero.end());
      const WeightedPoints points = inliers(capture.tensors[0], set, scale, zero);
      EXPECT_NEAR(datatype.objective, plain_optimum(points, 1 << datatype.bits), 1e-6 * datatype.objective);
      EXPECT_NEAR(datatype.objective, error_of(points, datatype.centroids), 1e-6 * datatype.objective);
    }
  }
}

// Of the whole error no other range of any channel takes more than what the parts leave open.
TEST(LayerFit, NoChannelHasABetterRangeNearItsOwn) {
  const LayerCapture capture = random_capture(200, 4);
  FitOptions options;
  options.bits = {3};
  options.outliers = {0.01};
  options.fitted_ranges = true;
  const formats::LayerCodebook codebook = fit_layer(capture, kLayer, options);
  const formats::OutlierSet& set = codebook.key().outliers[0];
  const formats::Datatype& datatype = set.datatypes[0];
  const std::vector<double> scale(datatype.scale.begin(), datatype.scale.end());
  const std::vector<double> zero(datatype.zero.begin(), datatype.zero.end());
  for (std::size_t c = 0; c < 4; ++c) {
    for (const double change : {-0.02, 0.02}) {
      std::vector<double> other = scale;
      other[c] *= 1 + change;
      EXPECT_GT(error_of(inliers(capture.tensors[0], set, other, zero), datatype.centroids),
                0.997 * datatype.objective);
      other = zero;
      other[c] += change * scale[c];
      EXPECT_GT(error_of(inliers(capture.tensors[0], set, scale, other), datatype.centroids),
                0.997 * datatype.objective);
    }
  }
}

TEST(LayerFit, RangesOfChannelsWithoutWeightAreThoseOfTheirThresholds) {
  LayerCapture capture = random_capture(60, 4);
  for (std::int64_t r = 0; r < 60; ++r) {
    set_number(capture.tensors[0].gradients, r, 1, 0);  // no weight
    set_number(capture.tensors[0].x, r, 2, 5);          // one number only
  }
  FitOptions options;
  options.fitted_ranges = true;
  const formats::LayerCodebook fit = fit_layer(capture, kLayer, options);
  for (const formats::OutlierSet& set : fit.key().outliers) {
    for (const formats::Datatype& datatype : set.datatypes) {
      ASSERT_TRUE(datatype.has_ranges());
      EXPECT_TRUE(std::isfinite(datatype.scale[1]) && datatype.scale[1] > 0);
      EXPECT_EQ(datatype.scale[2], 0);
      EXPECT_EQ(datatype.zero[2], 5);
    }
  }
}

TEST(LayerFit, TurnedValuesAreFittedAsWhatTheyBecome) {
  constexpr std::int64_t kTokens = 120;
  const LayerCapture capture = random_capture(kTokens, 8);  // heads of 4
  LayerCapture turned = capture;
  const auto turn = [](std::vector<float> x) {
    std::vector<float> y(8);
    for (std::size_t i = 0; i < 8; ++i) {
      for (std::size_t j = i / 4 * 4; j < i / 4 * 4 + 4; ++j)
        y[i] += (std::popcount((i % 4) & (j % 4)) % 2 == 0 ? 0.5F : -0.5F) * x[j];
    }
    return y;
  };
  for (std::int64_t r = 0; r < kTokens; ++r) {
    for (CapturedMatrix* matrix : {&turned.tensors[1].x, &turned.tensors[1].gradients})
      set_row(*matrix, r, turn(row_of(*matrix, r)));
  }
  FitOptions options;
  const formats::LayerCodebook plain = fit_layer(capture, kLayer, options);
  const formats::LayerCodebook expected = fit_layer(turned, kLayer, options);
  options.turned_values = true;
  const formats::LayerCodebook fit = fit_layer(capture, kLayer, options);
  EXPECT_EQ(fit.key(), plain.key());
  EXPECT_EQ(fit.value().rotation_block, 4);
  EXPECT_EQ(fit.value().fisher_channel, plain.value().fisher_channel);
  EXPECT_EQ(fit.value().magnitudes, plain.value().magnitudes);
  for (std::size_t s = 0; s < 2; ++s) {
    for (std::size_t d = 0; d < 3; ++d) {
      const double objective = fit.value().outliers[s].datatypes[d].objective;
      EXPECT_NEAR(objective, expected.value().outliers[s].datatypes[d].objective, 1e-4 * objective);
      EXPECT_GT(std::abs(objective / plain.value().outliers[s].datatypes[d].objective - 1), 1e-2);
    }
  }
}

TEST(LayerFit, ObjectiveIsThatOfRawWeights) {
  const LayerCapture capture = random_capture(200, 8);
  FitOptions options;
  options.bits = {3};
  options.outliers = {0};
  const auto set = fit_layer(capture, kLayer, options).key().outliers[0];
  double sum = 0;
  for (std::int64_t r = 0; r < 200; ++r) {
    for (std::size_t c = 0; c < 8; ++c) {
      const Normaliser n = normaliser(set.lower[c], set.upper[c]);
      const double x = (row_of(capture.tensors[0].x, r)[c] - n.zero) / n.range;
      double error = INFINITY;
      for (const float q : set.datatypes[0].centroids)
        error = std::min(error, std::abs(x - static_cast<double>(q)));
      sum += std::pow(static_cast<double>(row_of(capture.tensors[0].gradients, r)[c]) * n.range * error, 2);
    }
  }
  // The stored centroids are rounded to float32, which shows in the second order only.
  EXPECT_NEAR(set.datatypes[0].objective, sum, 1e-10 * sum);
}

void expect_equal(const formats::TensorCodebook& a, const formats::TensorCodebook& b) {
  EXPECT_EQ(a.fisher_channel, b.fisher_channel);
  EXPECT_EQ(a.halves.datatype_excess, b.halves.datatype_excess);
  for (std::size_t f = 0; f < a.outliers.size(); ++f) {
    EXPECT_EQ(a.outliers[f].lower, b.outliers[f].lower);
    EXPECT_EQ(a.outliers[f].upper, b.outliers[f].upper);
    for (std::size_t d = 0; d < a.outliers[f].datatypes.size(); ++d) {
      const auto &left = a.outliers[f].datatypes[d], &right = b.outliers[f].datatypes[d];
      EXPECT_EQ(left.centroids, right.centroids);
      EXPECT_EQ(left.objective, right.objective);
      EXPECT_EQ(left.lower_bound, right.lower_bound);
      EXPECT_EQ(left.qnorm_scale, right.qnorm_scale);
      EXPECT_EQ(left.qnorm_offset, right.qnorm_offset);
    }
  }
}

TEST(LayerFit, IsTheSameForAnyNumberOfThreads) {
  const LayerCapture capture = random_capture(30000, 8);
  FitOptions options;
  options.threads = 1;
  const formats::LayerCodebook one = fit_layer(capture, kLayer, options);
  for (const int threads : {2, 5}) {
    options.threads = threads;
    const formats::LayerCodebook many = fit_layer(capture, kLayer, options);
    expect_equal(one.key(), many.key());
    expect_equal(one.value(), many.value());
  }
}

TEST(LayerFit, FisherChannelSumsSquaredGradients) {
  const LayerCapture capture = random_capture(100, 8);
  const formats::LayerCodebook fit = fit_layer(capture, kLayer, FitOptions{});
  for (std::size_t c = 0; c < 8; ++c) {
    double sum = 0;
    for (std::int64_t r = 0; r < 100; ++r)
      sum += std::pow(static_cast<double>(row_of(capture.tensors[1].gradients, r)[c]), 2);
    EXPECT_FLOAT_EQ(fit.value().fisher_channel[c], static_cast<float>(sum));
  }
}

TEST(LayerFit, TinyGradientsDoNotUnderflow) {
  const formats::LayerCodebook normal = fit_layer(random_capture(300, 8, 1e-4), kLayer, FitOptions{});
  const formats::LayerCodebook tiny = fit_layer(random_capture(300, 8, 1e-30), kLayer, FitOptions{});
  EXPECT_EQ(tiny.key().outliers[0].datatypes[0].weights, "fisher");
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(tiny.key().outliers[1].datatypes[1].centroids[i],
                normal.key().outliers[1].datatypes[1].centroids[i], 1e-5);
  }
}

TEST(LayerFit, WithoutAnyWeightEveryElementWeighsTheSame) {
  LayerCapture capture = random_capture(100, 8, 0);
  const formats::LayerCodebook fit = fit_layer(capture, kLayer, FitOptions{});
  EXPECT_EQ(fit.key().outliers[0].datatypes[0].weights, "uniform");
  EXPECT_EQ(fit.key().fisher_channel[0], 0);
}

TEST(LayerFit, WithoutSensitivitiesTheWeightIsTheRangeAlone) {
  LayerCapture capture = random_capture(100, 8);
  capture.tensors[0].gradients = CapturedMatrix();
  capture.tensors[1].gradients = CapturedMatrix();
  const formats::LayerCodebook fit = fit_layer(capture, kLayer, FitOptions{});
  EXPECT_EQ(fit.key().outliers[0].datatypes[0].weights, "none");
  EXPECT_EQ(fit.key().fisher_channel[0], 100);
}

TEST(LayerFit, AConstantChannelIsLeftOut) {
  LayerCapture capture = random_capture(100, 8);
  for (std::int64_t r = 0; r < 100; ++r) set_number(capture.tensors[0].x, r, 3, 7.25F);
  const formats::LayerCodebook fit = fit_layer(capture, kLayer, FitOptions{});
  EXPECT_EQ(fit.key().outliers[0].lower[3], 7.25F);
  EXPECT_EQ(fit.key().outliers[0].upper[3], 7.25F);
  const std::vector<double> fractions = {0};
  const CapturedTokens tokens(capture.tensors[0]);
  const PairLayout layout{formats::ThresholdScope::channel, 8, 1};
  const auto thresholds = find_thresholds(tokens, layout, fractions, 1);
  EXPECT_EQ(FitSource(tokens, thresholds[0], layout, Weighting::kRange, 1).inliers(), 700);
}

TEST(LayerFit, ConstantKeysThroughoutAreRefused) {
  LayerCapture capture = random_capture(10, 8);
  for (std::int64_t r = 0; r < 10; ++r) set_row(capture.tensors[0].x, r, std::vector<float>(8, 1.0F));
  try {
    (void)fit_layer(capture, kLayer, FitOptions{});
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("layer 5, keys"), std::string::npos) << error.what();
  }
}

TEST(LayerFit, AScaleBeyondHalfPrecisionNamesLayerAndChannel) {
  LayerCapture capture = random_capture(50, 8);
  set_number(capture.tensors[0].x, 7, 6, 3e5F);
  try {
    (void)fit_layer(capture, kLayer, FitOptions{});
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("layer 5, keys, channel 6"), std::string::npos) << error.what();
  }
}

TEST(LayerFit, FewerDistinctPointsThanCentroidsRepeatsTheLast) {
  LayerCapture capture = random_capture(40, 8);
  for (std::int64_t r = 0; r < 40; ++r) {
    set_row(capture.tensors[0].x, r, std::vector<float>(8, r % 2 == 0 ? -1.0F : 2.0F));
  }
  const auto set = fit_layer(capture, kLayer, FitOptions{}).key().outliers[0];
  EXPECT_EQ(set.datatypes[0].centroids, (std::vector<float>{-1, 1, 1, 1}));
  EXPECT_EQ(set.datatypes[0].objective, 0);
  EXPECT_EQ(set.datatypes[0].qnorm_scale, 1);
  EXPECT_EQ(set.datatypes[0].qnorm_offset, 0);
}

/// A source of given points with unit weights.
class PlainSource final : public kmeans::PointSource<double> {
 public:
  explicit PlainSource(std::vector<double> points) : points_(std::move(points)) {}
  [[nodiscard]] std::int64_t num_chunks() const override { return 2; }
  void load(std::int64_t chunk, std::vector<double>& points, std::vector<double>& weights) const override {
    const auto half = static_cast<std::ptrdiff_t>(points_.size() / 2);
    points.assign(chunk == 0 ? points_.begin() : points_.begin() + half,
                  chunk == 0 ? points_.begin() + half : points_.end());
    weights.assign(points.size(), 1);
  }

 private:
  std::vector<double> points_;
};

TEST(QNorm, RestoresMeanAndDeviation) {
  // Points -1, -0.5, 0.5, 1 quantised to -0.5, 0.75: mean 0 and deviation sqrt(0.625) against 0.125 and
  // 0.625.
  const auto norms = qnorm(PlainSource({-1, -0.5, 0.5, 1}), {{-0.5F, -0.5F, 0.75F, 0.75F}}, 2);
  EXPECT_DOUBLE_EQ(norms[0].scale, std::sqrt(0.625) / 0.625);
  EXPECT_DOUBLE_EQ(norms[0].offset, -0.125 * norms[0].scale);
}

TEST(QNorm, OfASinglePointChangesNothing) {
  const auto norms = qnorm(PlainSource({0.5F, 0.5F}), {{0.25F, 0.25F, 0.25F, 0.25F}}, 1);
  EXPECT_EQ(norms[0].scale, 1);
  EXPECT_EQ(norms[0].offset, 0);
}

TEST(ObjectiveOf, GivesAMidpointToTheLowerCentroid) {
  EXPECT_DOUBLE_EQ(objective_of(PlainSource({0, 0.5, 1, 1}), std::vector<float>{0, 0, 1, 1}, 1), 0.25);
}

}  // namespace
}  // namespace kvcal::calib
