// calib/engine/passes.h: the two passes over the layers, one layer in memory, samples side by side,
// doing what is left of a run.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "base/progress.h"
#include "calib/engine/activation_store.h"
#include "calib/engine/sample_lanes.h"
#include "calib/engine/session.h"
#include "calib/engine/work_folder.h"
#include "calib/plan/remaining_work.h"
#include "fisher/block_gradients.h"

namespace kvcal::calib {

/// What is done with the layers that the backward pass comes to.
class LayerVisitor {
 public:
  virtual ~LayerVisitor() = default;
  /// Before the layer's first sample.
  virtual void begin(int layer) = 0;
  /// A sample's recomputation of the layer, with gradients where the pass takes them. Called on several
  /// threads at once, each time for another sample.
  virtual void visit(int layer, std::int64_t sample, const fisher::BlockGradients& block) = 0;
  /// After its last sample.
  virtual void end(int layer) = 0;
};

struct PassOptions {
  bool with_gradients = true;    ///< sensitivities are wanted: a backward pass; else a second forward pass
  int lanes = 1;                 ///< samples side by side
  std::int64_t cache_bytes = 0;  ///< memory for activations
};

/// The passes of one run. Everything they leave lies in the work folder. All of them throw InvalidInput
/// naming layer and sample where a value is not finite, DamagedCheckpoint where a file of an earlier run is,
/// SystemError, and Interrupted.
class Passes {
 public:
  /// Session, folder and progress outlive this object.
  Passes(const Session& session, const WorkFolder& folder, base::Progress& progress, RemainingWork left,
         const PassOptions& options);

  /// Computes the hidden states that are wanted.
  void forward();
  /// Each sample's loss at the head, and the gradient there.
  [[nodiscard]] std::vector<double> head();
  /// From the last layer, those that are left: the visitor sees the ones to be fitted, in the order of the
  /// pass. Layers that are not, but whose gradient is wanted, are recomputed for that alone.
  void backward(LayerVisitor& visitor);
  /// After backward(), when the last fit is done.
  void end_backward();
  /// Nothing needs this layer's backward any more: its codebook is durable, or it was recomputed for its
  /// gradient only. The files that only this needed are removed.
  void layer_done(int layer);

 private:
  [[nodiscard]] std::int64_t samples() const { return session_.windows.samples; }
  [[nodiscard]] at::Tensor hidden(int layer, std::int64_t sample);
  void begin_stage(const char* name, int layers);
  void end_stage();
  void for_each_sample(const std::string& detail, const std::function<void(std::int64_t)>& body);
  void embed_samples();
  void visit_layer(int layer, LayerVisitor* visitor);
  [[nodiscard]] fisher::BlockGradients recompute(const fisher::Block& block, int layer, std::int64_t sample,
                                                 bool with_input);

  const Session& session_;
  const WorkFolder& folder_;
  base::Progress& progress_;
  RemainingWork left_;
  bool with_gradients_;
  SampleLanes lanes_;
  ActivationStore hidden_;
  ActivationStore gradients_;
  std::mutex progress_mutex_;
  std::int64_t stage_layers_ = 1;  // blocks that the stage runs
  std::int64_t stage_done_ = 0;    // tokens times blocks
};

}  // namespace kvcal::calib
