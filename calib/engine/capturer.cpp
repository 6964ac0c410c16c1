#include "calib/engine/capturer.h"

#include <ATen/ATen.h>

#include <cstddef>
#include <utility>

#include "base/error.h"

namespace kvcal::calib {

Capturer::Capturer(const Session& session, const CaptureOptions& options, int last_layer, FitQueue& queue)
    : session_(session), options_(options), last_layer_(last_layer), queue_(queue) {
  for (const std::int64_t length : session.sample_lengths()) {
    first_token_.push_back(tokens_);
    tokens_ += length - options.sinks;
  }
  sink_tokens_ = session.windows.samples * options.sinks;
}

CapturedMatrix Capturer::room(const formats::CachedTensor& tensor) const {
  const auto dtype = session_.placement.dtype == at::kBFloat16 ? formats::Dtype::BF16 : formats::Dtype::F32;
  return {tensor.thresholds, tokens_ + sink_tokens_, tensor.channels(), dtype};
}

void Capturer::begin(int layer) {
  capture_ = {};
  rotated_.clear();
  capture_.layer = layer;
  const std::vector<formats::CachedTensor> tensors = session_.model->cache(layer);
  const bool rotates = session_.config().layers[static_cast<std::size_t>(layer)].rope_json != "null";
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    capture_.tensors.push_back({tensors[t], room(tensors[t]),
                                options_.with_gradients ? room(tensors[t]) : CapturedMatrix(), sink_tokens_});
    // Thresholds by channel are what rotation moves; those of a token are found anew in any case.
    if (!rotates || tensors[t].thresholds != formats::ThresholdScope::channel) continue;
    capture_.rotated.push_back({tensors[t], room(tensors[t]), {}, sink_tokens_});
    rotated_.push_back(t);
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
    if (!options_.with_gradients) continue;
    require_finite(session_, block.gradients[t], layer_place(layer), sample, "gradients of " + name);
    put(captured.gradients, sample, block.gradients[t]);
  }
  for (std::size_t r = 0; r < rotated_.size(); ++r) {
    // What a family does not rotate is after RoPE what it was before.
    const at::Tensor& after = block.rotated[rotated_[r]];
    put(capture_.rotated[r].x, sample, after.defined() ? after : block.cached[rotated_[r]]);
  }
}

void Capturer::end(int layer) {
  queue_.add(std::move(capture_), layer == last_layer_);
}

// A sample's tokens in their place; its sinks behind the tokens of all samples.
void Capturer::put(CapturedMatrix& matrix, std::int64_t sample, const at::Tensor& x) const {
  put_tokens(matrix, first_token_[static_cast<std::size_t>(sample)], x.slice(0, options_.sinks));
  if (options_.sinks > 0)
    put_tokens(matrix, tokens_ + sample * options_.sinks, x.slice(0, 0, options_.sinks));
}

void Capturer::put_tokens(CapturedMatrix& matrix, std::int64_t first, const at::Tensor& x) const {
  const at::Tensor kept = x.to(at::kCPU, session_.placement.dtype).contiguous();
  matrix.put(first, {static_cast<const std::byte*>(kept.const_data_ptr()), kept.nbytes()});
}

}  // namespace kvcal::calib
