// calib/engine/capturer.h: the visitor of the backward pass that captures each layer for its fit.
#pragma once

#include <cstdint>
#include <vector>

#include "calib/engine/fit_queue.h"
#include "calib/engine/passes.h"
#include "calib/engine/session.h"

namespace kvcal::calib {

struct CaptureOptions {
  int sinks = 0;  ///< tokens at the start of each sample that statistics leave out
  bool with_gradients = true;
};

/// Session and queue outlive this object.
class Capturer final : public LayerVisitor {
 public:
  /// last_layer: the one after which none comes.
  Capturer(const Session& session, const CaptureOptions& options, int last_layer, FitQueue& queue);

  void begin(int layer) override;
  void visit(int layer, std::int64_t sample, const fisher::BlockGradients& block) override;
  void end(int layer) override;

 private:
  void put(CapturedMatrix& matrix, std::int64_t sample, const at::Tensor& x) const;
  void put_tokens(CapturedMatrix& matrix, std::int64_t first, const at::Tensor& x) const;
  [[nodiscard]] CapturedMatrix room(const formats::CachedTensor& tensor) const;

  const Session& session_;
  CaptureOptions options_;
  int last_layer_;
  FitQueue& queue_;
  std::int64_t tokens_ = 0, sink_tokens_ = 0;  // without sinks; sinks
  std::vector<std::int64_t> first_token_;      // of each sample
  LayerCapture capture_;
  std::vector<std::size_t> rotated_;  // which of its tensors capture_.rotated holds
};

}  // namespace kvcal::calib
