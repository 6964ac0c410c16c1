#include "calib/engine/capturer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

namespace kvcal::calib {

Capturer::Capturer(const Session& session, int sinks, bool with_gradients, int last_layer, FitQueue& queue)
    : session_(session),
      sinks_(sinks),
      with_gradients_(with_gradients),
      last_layer_(last_layer),
      queue_(queue) {
  for (const std::int64_t length : session.sample_lengths()) {
    first_row_.push_back(rows_);
    rows_ += length - sinks_;
  }
}

void Capturer::begin(int layer) {
  capture_ = {};
  capture_.layer = layer;
  for (const formats::CachedTensor& tensor : session_.model->cache(layer)) {
    CapturedTensor captured{tensor, Matrix(rows_, tensor.channels()), {}};
    if (with_gradients_) captured.gradients = Matrix(rows_, tensor.channels());
    capture_.tensors.push_back(std::move(captured));
  }
}

void Capturer::visit(int layer, std::int64_t sample, const fisher::BlockGradients& block) {
  for (std::size_t t = 0; t < capture_.tensors.size(); ++t) {
    CapturedTensor& captured = capture_.tensors[t];
    const std::string name = captured.tensor.name + "s";
    require_finite(session_, block.cached[t], layer_place(layer), sample, name);
    put(captured.x, sample, block.cached[t]);
    if (!with_gradients_) continue;
    require_finite(session_, block.gradients[t], layer_place(layer), sample, "gradients of " + name);
    put(captured.gradients, sample, block.gradients[t]);
  }
}

void Capturer::end(int layer) {
  queue_.add(std::move(capture_), layer == last_layer_);
}

// A sample's rows, its sinks left out, in float.
void Capturer::put(Matrix& matrix, std::int64_t sample, const at::Tensor& x) const {
  const at::Tensor kept = x.slice(0, sinks_).to(at::kCPU, at::kFloat).contiguous();
  const auto* data = kept.const_data_ptr<float>();
  std::copy(data, data + kept.numel(), matrix.row(first_row_[static_cast<std::size_t>(sample)]).data());
}

}  // namespace kvcal::calib
