// calib/fit/layer_fit.h: all codebooks of one layer from one capture: thresholds, datatypes at their optimum,
// Q-Norm, sensitivities.
#pragma once

#include <string>
#include <vector>

#include "calib/engine/layer_capture.h"
#include "calib/model/model_config.h"
#include "formats/codebook.h"

namespace kvcal::calib {

struct FitOptions {
  std::vector<int> bits = {2, 3, 4};
  std::vector<double> outliers = {0, 0.01};
  /// Thresholds of a token per kv head (ThresholdScope::token); else over all its channels.
  bool token_per_head = false;
  bool range_weights = true;  ///< weights F s^2; else F
  int threads = 0;
  bool ablation = false;  ///< each fit once more with sinks counted
  /// Ranges of channels are fitted to each datatype (range_fit.h) where that lowers its error; else the thresholds give them.
  bool fitted_ranges = false;
  /// What has thresholds by token is turned within each head (cuda/hadamard.h) before it is fitted.
  bool turned_values = false;
};

/// Fits every tensor of a layer, every fraction and bits. The same result for any number of threads. Of a tensor that is turned
/// fisher_channel and magnitudes are as it was before.
/// Where all weights of a fit are zero it is made with equal ones, and says so (Datatype::weights).
/// Throws InvalidInput naming layer and tensor: a threshold beyond fp16, in which scales are stored; no inlier
/// to fit.
[[nodiscard]] formats::LayerCodebook fit_layer(LayerCapture capture, const LayerConfig& layer,
                                               const FitOptions& options);

}  // namespace kvcal::calib
