// calib/engine/capturer.h: the visitor of the backward pass that captures each layer for its fit.
#pragma once

#include <cstdint>
#include <vector>

#include "calib/engine/fit_queue.h"
#include "calib/engine/passes.h"
#include "calib/engine/session.h"

namespace kvcal::calib {

/// Session and queue outlive this object.
class Capturer final : public LayerVisitor {
 public:
  /// sinks: tokens at the start of each sample that are left out; last_layer: the one after which none comes.
  Capturer(const Session& session, int sinks, bool with_gradients, int last_layer, FitQueue& queue);

  void begin(int layer) override;
  void visit(int layer, std::int64_t sample, const fisher::BlockGradients& block) override;
  void end(int layer) override;

 private:
  void put(CapturedMatrix& matrix, std::int64_t sample, const at::Tensor& x) const;

  const Session& session_;
  std::int64_t sinks_;
  bool with_gradients_;
  int last_layer_;
  FitQueue& queue_;
  std::int64_t tokens_ = 0;
  std::vector<std::int64_t> first_token_;  // of each sample
  LayerCapture capture_;
};

}  // namespace kvcal::calib
