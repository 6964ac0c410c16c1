// calib/engine/fit_queue.h: layers on their way from the backward pass to their codebooks.
#pragma once

#include <functional>
#include <future>
#include <utility>
#include <vector>

#include "calib/engine/layer_capture.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// Fits a layer on a thread of its own, while the passes go on; one at a time.
class FitQueue {
 public:
  /// Fits a captured layer with so many threads and makes the result durable.
  using Fit = std::function<formats::LayerCodebook(LayerCapture capture, int threads)>;
  /// Is told, on the thread of the passes, that a layer's codebook is durable.
  using Done = std::function<void(int layer)>;

  FitQueue(Fit fit, Done done, int threads)
      : fit_(std::move(fit)), done_(std::move(done)), threads_(threads) {}

  /// Waits for the fit before, then starts this one. The samples of the next layer need all threads, so it
  /// takes half of them: more would only take turns with those, and wait for each other. last: no layer
  /// follows, and it takes them all. Rethrows the error of the fit before.
  void add(LayerCapture capture, bool last);
  /// Waits for the fit under way, if any, and keeps its result. Rethrows its error.
  void wait();

  /// Of all fits that are done.
  [[nodiscard]] double seconds() const { return seconds_; }
  /// Those fitted so far, in the order of their fits.
  [[nodiscard]] std::vector<formats::LayerCodebook> take_layers() { return std::move(layers_); }

 private:
  Fit fit_;
  Done done_;
  int threads_;
  std::vector<formats::LayerCodebook> layers_;
  double seconds_ = 0;
  // The codebook, and the seconds that it took. Last: it ends before what it uses.
  std::future<std::pair<formats::LayerCodebook, double>> under_way_;
};

}  // namespace kvcal::calib
