// calib/passes.h: the two passes over the layers, one layer in memory, going on from what the work folder
// holds.
#pragma once

#include <functional>

#include "base/progress.h"
#include "calib/activation_store.h"
#include "calib/calibration_job.h"
#include "calib/capture.h"
#include "calib/work_folder.h"

namespace kvcal::calib {

/// The passes of one job. Everything they leave lies in the work folder; a pass that is done already is not
/// done again.
class Passes {
 public:
  /// cache_bytes: memory for activations. The job, folder and progress outlive this object.
  Passes(const CalibrationJob& job, const WorkFolder& folder, base::Progress& progress,
         std::int64_t cache_bytes);

  /// Pushes every sample through every layer and keeps each layer's input. Throws InvalidInput naming layer
  /// and sample where an activation is not finite.
  void forward();
  /// Each sample's loss at the head, and the gradient there. Returns their mean.
  double head();
  /// Recomputes one layer: its capture and, where gradients are wanted, the gradient at its input.
  [[nodiscard]] LayerCapture backward_layer(int layer);
  /// The files that only this layer's backward needed are removed: its codebook is saved.
  void layer_saved(int layer);

  [[nodiscard]] bool forward_done() const;
  [[nodiscard]] bool gradient_done(int layer) const { return gradients_.finished(layer); }

 private:
  [[nodiscard]] bool with_gradients() const { return job_.options.sensitivity == "fisher"; }
  [[nodiscard]] std::int64_t samples() const { return job_.windows.samples; }
  void check_finite(const at::Tensor& x, int layer, std::int64_t sample, const char* what) const;
  void embed_samples();

  const CalibrationJob& job_;
  const WorkFolder& folder_;
  base::Progress& progress_;
  int layers_;
  ActivationStore hidden_;
  ActivationStore gradients_;
};

}  // namespace kvcal::calib
