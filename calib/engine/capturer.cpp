#include "calib/engine/capturer.h"

#include <ATen/ATen.h>

#include <cstddef>
#include <utility>

#include "base/error.h"

namespace kvcal::calib {

Capturer::Capturer(const Session& session, int sinks, bool with_gradients, int last_layer, FitQueue& queue)
    : session_(session),
      sinks_(sinks),
      with_gradients_(with_gradients),
      last_layer_(last_layer),
      queue_(queue) {
  for (const std::int64_t length : session.sample_lengths()) {
    first_token_.push_back(tokens_);
    tokens_ += length - sinks_;
  }
}

void Capturer::begin(int layer) {
  capture_ = {};
  capture_.layer = layer;
  const auto dtype = session_.placement.dtype == at::kBFloat16 ? formats::Dtype::BF16 : formats::Dtype::F32;
  for (const formats::CachedTensor& tensor : session_.model->cache(layer)) {
    CapturedTensor captured{tensor, {tensor.thresholds, tokens_, tensor.channels(), dtype}, {}};
    if (with_gradients_) captured.gradients = {tensor.thresholds, tokens_, tensor.channels(), dtype};
    capture_.tensors.push_back(std::move(captured));
  }
}

void Capturer::visit(int layer, std::int64_t sample, const fisher::BlockGradients& block) {
  for (std::size_t t = 0; t < capture_.tensors.size(); ++t) {
    CapturedTensor& captured = capture_.tensors[t];
    const std::string name = captured.tensor.name + "s";
    const std::int64_t channels = captured.tensor.channels();
    if (block.cached[t].dim() != 2 || block.cached[t].size(1) != channels) {
      throw base::Error(base::concat(layer_place(layer), " shows ", name, " of ", block.cached[t].sizes(),
                                     ", expected ", channels, " channels"));
    }
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

// A sample's tokens, its sinks left out.
void Capturer::put(CapturedMatrix& matrix, std::int64_t sample, const at::Tensor& x) const {
  const at::Tensor kept = x.slice(0, sinks_).to(at::kCPU, session_.placement.dtype).contiguous();
  matrix.put(first_token_[static_cast<std::size_t>(sample)],
             {static_cast<const std::byte*>(kept.const_data_ptr()), kept.nbytes()});
}

}  // namespace kvcal::calib
