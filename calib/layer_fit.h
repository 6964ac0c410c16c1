// calib/layer_fit.h: all codebooks of one layer from one capture: thresholds, datatypes at their optimum,
// Q-Norm, sensitivities.
#pragma once

#include <string>
#include <vector>

#include "calib/capture.h"
#include "calib/model.h"
#include "calib/thresholds.h"
#include "formats/codebook.h"
#include "kmeans/weighted_kmeans.h"

namespace kvcal::calib {

struct FitOptions {
  std::vector<int> bits = {2, 3, 4};
  std::vector<double> outliers = {0, 0.01};
  bool value_per_head =
      false;  ///< value thresholds per token and kv head; else per token over all its channels
  bool range_weights = true;  ///< weights F s^2; else F
  int threads = 0;
};

/// Fits keys and values of a layer, every fraction and bits. The same result for any number of threads.
/// Where all weights of a fit are zero it is made with equal ones, and says so (Datatype::weights).
/// Throws InvalidInput naming the layer: a threshold beyond fp16, in which scales are stored; no inlier to
/// fit.
[[nodiscard]] formats::LayerCodebook fit_layer(const LayerCapture& capture, const LayerGeometry& geometry,
                                               const FitOptions& options);

/// Mean and standard deviation of a layer's inliers before and after quantising give Q-Norm (KVQuant
/// section 3.6): scale = s1/s2, offset = m1 - m2 scale, unweighted over the population, in double. For each
/// datatype of `centroids`.
struct QNorm {
  double scale = 1;
  double offset = 0;
};
[[nodiscard]] std::vector<QNorm> qnorm(const kmeans::PointSource<double>& source,
                                       const std::vector<std::vector<float>>& centroids, int threads);

/// sum w (x' - q(x'))^2 over the source, in its scaled weights.
[[nodiscard]] double objective_of(const kmeans::PointSource<double>& source, std::span<const float> centroids,
                                  int threads);

/// How far the fits on the two halves of the sample (first and second half of the rows) differ, at the
/// largest outlier fraction: the mean shift of a channel's thresholds in units of its range (keys; 0 for
/// values, whose thresholds are not stored), and by how much one half's datatype costs more on the other than
/// that one's own optimum. whole: the thresholds of all rows at that fraction.
[[nodiscard]] formats::SampleAgreement compare_halves(const CapturedTensor& tensor, const Thresholds& whole,
                                                      bool per_channel, int groups,
                                                      const FitOptions& options);

}  // namespace kvcal::calib
