#include "calib/engine/fit_queue.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace kvcal::calib {

void FitQueue::add(LayerCapture capture, bool last) {
  wait();
  const int threads = last ? threads_ : std::max(1, threads_ / 2);
  under_way_ = std::async(std::launch::async, [this, threads, capture = std::move(capture)]() mutable {
    const auto begin = std::chrono::steady_clock::now();
    formats::LayerCodebook fit = fit_(std::move(capture), threads);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    return std::pair{std::move(fit), taken.count()};
  });
}

void FitQueue::wait() {
  if (!under_way_.valid()) return;
  auto [fit, seconds] = under_way_.get();
  seconds_ += seconds;
  layers_.push_back(std::move(fit));
  done_(layers_.back().index);
}

}  // namespace kvcal::calib
