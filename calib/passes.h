// calib/passes.h: the two passes over the layers, one layer in memory, samples side by side, doing what is
// left of a run.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "base/progress.h"
#include "calib/activation_store.h"
#include "calib/calibration_job.h"
#include "calib/capture.h"
#include "calib/checkpoints.h"
#include "calib/sample_lanes.h"
#include "calib/work_folder.h"

namespace kvcal::calib {

/// The passes of one job. Everything they leave lies in the work folder. All of them throw InvalidInput
/// naming layer and sample where a value is not finite, DamagedCheckpoint where a file of an earlier run is,
/// SystemError, and Interrupted.
class Passes {
 public:
  /// cache_bytes: memory for activations. The job, folder and progress outlive this object.
  Passes(const CalibrationJob& job, const WorkFolder& folder, base::Progress& progress, RemainingWork left,
         int lanes, std::int64_t cache_bytes);

  /// Computes the hidden states that are wanted.
  void forward();
  /// Each sample's loss at the head, and the gradient there.
  [[nodiscard]] std::vector<double> head();
  void begin_backward();
  void end_backward() { end_stage(); }
  /// Recomputes one layer that left.visits(): its capture where it is to be fitted, and the gradient at its
  /// input where that is wanted.
  [[nodiscard]] std::optional<LayerCapture> backward_layer(int layer);
  /// Nothing needs this layer's backward any more: its codebook is saved, or it was recomputed for its
  /// gradient only. The files that only this needed are removed.
  void layer_done(int layer);

 private:
  [[nodiscard]] std::int64_t samples() const { return job_.windows.samples; }
  void check_finite(const at::Tensor& x, int layer, std::int64_t sample, const char* what) const;
  void begin_stage(const char* name, int layers);
  void end_stage();
  void for_each_sample(const std::string& detail, const std::function<void(std::int64_t)>& body);
  void embed_samples();
  void capture_sample(const fisher::Block& block, int layer, std::int64_t sample, bool with_input,
                      LayerCapture* capture);
  [[nodiscard]] LayerCapture make_capture(int layer) const;

  const CalibrationJob& job_;
  const WorkFolder& folder_;
  base::Progress& progress_;
  RemainingWork left_;
  int layers_;
  std::vector<std::int64_t> first_row_;  // of each sample in a capture
  SampleLanes lanes_;
  ActivationStore hidden_;
  ActivationStore gradients_;
  std::mutex progress_mutex_;
  std::int64_t stage_layers_ = 1;  // blocks that the stage runs
  std::int64_t stage_done_ = 0;    // tokens times blocks
};

}  // namespace kvcal::calib
