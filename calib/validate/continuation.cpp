#include "calib/validate/continuation.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "calib/engine/sample_lanes.h"
#include "calib/engine/state_store.h"

namespace kvcal::calib {
namespace {

/// Puts what a layer cached of earlier tokens before what it is shown, and keeps both.
class PastHook final : public fisher::CacheHook {
 public:
  explicit PastHook(std::vector<at::Tensor> past) : all_(std::move(past)) {}
  at::Tensor show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) override {
    if (point == fisher::CachePoint::rotated) return x;
    all_[tensor] = all_[tensor].defined() ? at::cat({all_[tensor], x}) : x;
    return all_[tensor];
  }
  /// Of each tensor, [tokens so far, channels].
  [[nodiscard]] const std::vector<at::Tensor>& all() const { return all_; }

 private:
  std::vector<at::Tensor> all_;
};

std::int64_t layer_bytes(const Session& session) {
  std::int64_t bytes = 0;
  for (int layer = 0; layer < session.num_layers(); ++layer) {
    for (const TensorSpec& spec : session.model->block_weights(layer))
      bytes += base::element_count(spec.shape, spec.name) *
               static_cast<std::int64_t>(at::elementSize(session.placement.dtype));
  }
  return bytes;
}

class Continuation {
 public:
  Continuation(const Session& session, const TokenWindows& windows, const ContinuationOptions& options,
               base::Progress& progress)
      : session_(session),
        windows_(windows),
        options_(options),
        progress_(progress),
        lanes_(options.lanes, session.placement.threads),
        keeps_blocks_(layer_bytes(session) <= options.memory_bytes / 2),
        states_(options.memory_bytes - (keeps_blocks_ ? layer_bytes(session) : 0), options.scratch),
        blocks_(static_cast<std::size_t>(session.num_layers())) {
    first_slot_.push_back(1);  // slot 0 is the hidden state
    for (int layer = 0; layer < session.num_layers(); ++layer)
      first_slot_.push_back(first_slot_.back() +
                            2 * static_cast<std::int64_t>(session.model->cache(layer).size()));
  }

  TokenWindows run() {
    progress_.begin_stage("writing", options_.tokens * windows_.samples, "tokens");
    for (std::int64_t w = 0; w < windows_.samples; ++w) {
      const std::span<const std::int32_t> window = windows_.sample(w);
      if (prompt(w) < 1)
        throw base::Error(base::concat("window ", w, " of ", window.size(), " tokens, ", options_.tokens,
                                       " of them to be written anew"));
      embed(w, window.first(static_cast<std::size_t>(prompt(w))));
    }
    for (std::int64_t step = 0; step < options_.tokens; ++step) {
      for (int layer = 0; layer < session_.num_layers(); ++layer) run_layer(layer, step);
      choose(step);
    }
    progress_.end_stage();
    windows_.texts.clear();
    return std::move(windows_);
  }

 private:
  [[nodiscard]] std::int64_t prompt(std::int64_t window) const {
    return static_cast<std::int64_t>(windows_.sample(window).size()) - options_.tokens;
  }
  [[nodiscard]] std::int64_t slot(std::int64_t which, std::int64_t window) const {
    return which * windows_.samples + window;
  }
  // Of a tensor's tokens: the prompt's, and those after it, which alone change with each step.
  [[nodiscard]] std::int64_t prompt_slot(int layer, std::size_t tensor, std::int64_t window) const {
    return slot(first_slot_[static_cast<std::size_t>(layer)] + 2 * static_cast<std::int64_t>(tensor), window);
  }

  void embed(std::int64_t window, std::span<const std::int32_t> tokens) {
    const at::NoGradGuard no_graph;
    const at::Tensor embedded = session_.model->embed(tokens);
    require_finite(session_, embedded, layer_place(0), window, "embeddings");
    states_.put(slot(0, window), embedded.to(at::kCPU));
  }

  [[nodiscard]] std::vector<at::Tensor> past(int layer, std::int64_t window, std::int64_t step) const {
    std::vector<at::Tensor> result(session_.model->cache(layer).size());
    for (std::size_t t = 0; t < result.size() && step > 0; ++t) {
      const std::int64_t at = prompt_slot(layer, t, window);
      result[t] = states_.get(at);
      if (step > 1) result[t] = at::cat({result[t], states_.get(at + windows_.samples)});
      result[t] = result[t].to(session_.placement.device);
    }
    return result;
  }

  void run_layer(int layer, std::int64_t step) {
    std::unique_ptr<fisher::Block>& kept = blocks_[static_cast<std::size_t>(layer)];
    if (!kept) kept = session_.model->load_block(layer);
    lanes_.run(windows_.samples, [&](std::int64_t window) {
      {
        const std::scoped_lock lock(mutex_);
        progress_.check_interrupted();
      }
      const at::NoGradGuard no_graph;
      PastHook hook(past(layer, window, step));
      const at::Tensor input = states_.get(slot(0, window)).to(session_.placement.device);
      const at::Tensor output = kept->forward(input, &hook);
      require_finite(session_, output, layer_place(layer), window, "activations");
      states_.put(slot(0, window), output.to(at::kCPU));
      for (std::size_t t = 0; t < hook.all().size(); ++t) {
        const std::int64_t at = prompt_slot(layer, t, window) + (step > 0 ? windows_.samples : 0);
        states_.put(at, hook.all()[t].slice(0, step > 0 ? prompt(window) : 0).contiguous().to(at::kCPU));
      }
    });
    if (keeps_blocks_) return;
    kept.reset();
    session_.weights->dont_need(session_.model->block_weights(layer));
  }

  // Each window's next token, which takes the place of the hidden states that it came from.
  void choose(std::int64_t step) {
    if (!head_) head_ = session_.model->load_head();
    for (std::int64_t w = 0; w < windows_.samples; ++w) {
      const at::NoGradGuard no_graph;
      const at::Tensor hidden = states_.get(slot(0, w));
      const at::Tensor logits =
          head_->logits(hidden.slice(0, hidden.size(0) - 1).to(session_.placement.device));
      require_finite(session_, logits, "the head", w, "logits");
      const auto token = static_cast<std::int32_t>(logits.argmax(-1).item<std::int64_t>());
      windows_.ids[static_cast<std::size_t>(w * windows_.seqlen + prompt(w) + step)] = token;
      embed(w, {&token, 1});
    }
    progress_.advance((step + 1) * windows_.samples, "full precision");
  }

  const Session& session_;
  TokenWindows windows_;
  const ContinuationOptions& options_;
  base::Progress& progress_;
  SampleLanes lanes_;
  bool keeps_blocks_;
  StateStore states_;
  std::vector<std::unique_ptr<fisher::Block>> blocks_;
  std::unique_ptr<fisher::Head> head_;
  std::vector<std::int64_t> first_slot_;  // of each layer
  std::mutex mutex_;                      // of progress
};

}  // namespace

TokenWindows continue_windows(const Session& session, const TokenWindows& windows,
                              const ContinuationOptions& options, base::Progress& progress) {
  return Continuation(session, windows, options, progress).run();
}

std::int64_t continuation_bytes(const Session& session, const TokenWindows& windows) {
  std::int64_t numbers = session.config().hidden_size;
  for (int layer = 0; layer < session.num_layers(); ++layer)
    for (const formats::CachedTensor& tensor : session.model->cache(layer)) numbers += tensor.channels();
  return windows.tokens() * numbers * static_cast<std::int64_t>(at::elementSize(session.placement.dtype));
}

}  // namespace kvcal::calib
