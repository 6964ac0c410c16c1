#include "calib/validate/continuation.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "calib/engine/sample_lanes.h"
#include "calib/engine/state_store.h"
#include "fisher/head_loss.h"

namespace kvcal::calib {
namespace {

/// Puts what a layer cached of earlier tokens before what it is shown, and keeps what was new.
class PastHook final : public fisher::CacheHook {
 public:
  explicit PastHook(std::vector<at::Tensor> past) : past_(std::move(past)), added_(past_.size()) {}
  at::Tensor show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) override {
    if (point == fisher::CachePoint::rotated) return x;
    added_[tensor] = x;
    return past_[tensor].defined() ? at::cat({past_[tensor], x}) : x;
  }
  /// Of each tensor, [new tokens, channels].
  [[nodiscard]] const std::vector<at::Tensor>& added() const { return added_; }

 private:
  std::vector<at::Tensor> past_, added_;
};

std::int64_t bytes_of(const Session& session, const std::vector<TensorSpec>& specs) {
  std::int64_t numbers = 0;
  for (const TensorSpec& spec : specs) numbers += base::element_count(spec.shape, spec.name);
  return numbers * static_cast<std::int64_t>(at::elementSize(session.placement.dtype));
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
        need_(continuation_need(session, windows, options.tokens, options.memory_bytes)),
        states_(std::max<std::int64_t>(0, options.memory_bytes - need_.kept_bytes()), options.scratch),
        blocks_(static_cast<std::size_t>(session.num_layers())) {
    for (int layer = 0; layer < session.num_layers(); ++layer) {
      first_tensor_.push_back(tensors_);
      tensors_ += static_cast<std::int64_t>(session.model->cache(layer).size());
    }
    tails_.resize(static_cast<std::size_t>(tensors_ * windows.samples));
  }

  TokenWindows run() {
    progress_.begin_stage("writing", options_.tokens * windows_.samples, "tokens");
    for (std::int64_t w = 0; w < windows_.samples; ++w) {
      if (prompt(w) < 1) {
        throw base::Error(base::concat("window ", w, " of ", windows_.sample(w).size(), " tokens, ",
                                       options_.tokens, " of them to be written anew"));
      }
      embed(w, windows_.sample(w).first(static_cast<std::size_t>(prompt(w))));
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
  // Of a window's hidden state, and of what a layer caches of its prompt.
  [[nodiscard]] static std::int64_t hidden_slot(std::int64_t window) { return window; }
  [[nodiscard]] std::int64_t cache_index(int layer, std::size_t tensor, std::int64_t window) const {
    const std::int64_t which =
        first_tensor_[static_cast<std::size_t>(layer)] + static_cast<std::int64_t>(tensor);
    return which * windows_.samples + window;
  }
  [[nodiscard]] std::int64_t prompt_slot(int layer, std::size_t tensor, std::int64_t window) const {
    return windows_.samples + cache_index(layer, tensor, window);
  }
  // Room for what a layer caches of the tokens written, the first `written` of which are there.
  [[nodiscard]] at::Tensor& tail(int layer, std::size_t tensor, std::int64_t window) {
    return tails_[static_cast<std::size_t>(cache_index(layer, tensor, window))];
  }

  void embed(std::int64_t window, std::span<const std::int32_t> tokens) {
    const at::NoGradGuard no_graph;
    const at::Tensor embedded = session_.model->embed(tokens);
    require_finite(session_, embedded, layer_place(0), window, "embeddings");
    states_.put(hidden_slot(window), embedded.to(at::kCPU));
  }

  [[nodiscard]] std::vector<at::Tensor> past(int layer, std::int64_t window, std::int64_t step) {
    std::vector<at::Tensor> result(session_.model->cache(layer).size());
    for (std::size_t t = 0; t < result.size() && step > 0; ++t) {
      result[t] = states_.get(prompt_slot(layer, t, window)).to(session_.placement.device);
      if (step > 1) result[t] = at::cat({result[t], tail(layer, t, window).slice(0, 0, step - 1)});
    }
    return result;
  }

  void keep(const PastHook& hook, int layer, std::int64_t window, std::int64_t step) {
    for (std::size_t t = 0; t < hook.added().size(); ++t) {
      const at::Tensor& x = hook.added()[t];
      if (step == 0) {
        states_.put(prompt_slot(layer, t, window), x.to(at::kCPU));
        tail(layer, t, window) = at::empty({options_.tokens - 1, x.size(1)}, x.options());
      } else {
        tail(layer, t, window).slice(0, step - 1, step).copy_(x);
      }
    }
  }

  void run_layer(int layer, std::int64_t step) {
    std::unique_ptr<fisher::Block>& block = blocks_[static_cast<std::size_t>(layer)];
    if (!block) block = session_.model->load_block(layer);
    lanes_.run(windows_.samples, [&](std::int64_t window) {
      {
        const std::scoped_lock lock(mutex_);
        progress_.check_interrupted();
      }
      const at::NoGradGuard no_graph;
      PastHook hook(past(layer, window, step));
      const at::Tensor input = states_.get(hidden_slot(window)).to(session_.placement.device);
      const at::Tensor output = block->forward(input, &hook);
      require_finite(session_, output, layer_place(layer), window, "activations");
      states_.put(hidden_slot(window), output.to(at::kCPU));
      keep(hook, layer, window, step);
    });
    if (need_.keeps_weights) return;
    block.reset();
    session_.weights->dont_need(session_.model->block_weights(layer));
  }

  // Each window's next token, whose embedding takes the place of the hidden states that it came from.
  void choose(std::int64_t step) {
    const at::NoGradGuard no_graph;
    if (!head_) head_ = session_.model->load_head();
    const std::int64_t at_once = fisher::head_rows(session_.config().vocab_size);
    for (std::int64_t begin = 0; begin < windows_.samples; begin += at_once) {
      std::vector<at::Tensor> last;
      for (std::int64_t w = begin; w < std::min(windows_.samples, begin + at_once); ++w) {
        const at::Tensor hidden = states_.get(hidden_slot(w));
        last.push_back(hidden.slice(0, hidden.size(0) - 1));
      }
      const at::Tensor logits = head_->logits(at::cat(last).to(session_.placement.device));
      for (std::int64_t row = 0; row < logits.size(0); ++row) {
        require_finite(session_, logits[row], "the head", begin + row, "logits");
        write(begin + row, step, static_cast<std::int32_t>(logits[row].argmax().item<std::int64_t>()));
      }
    }
    if (!need_.keeps_weights) {
      head_.reset();
      session_.weights->dont_need(session_.model->head_weights());
    }
    progress_.advance((step + 1) * windows_.samples, "full precision");
  }

  void write(std::int64_t window, std::int64_t step, std::int32_t token) {
    windows_.ids[static_cast<std::size_t>(window * windows_.seqlen + prompt(window) + step)] = token;
    embed(window, {&token, 1});
  }

  const Session& session_;
  TokenWindows windows_;
  const ContinuationOptions& options_;
  base::Progress& progress_;
  SampleLanes lanes_;
  ContinuationNeed need_;
  StateStore states_;
  std::vector<std::unique_ptr<fisher::Block>> blocks_;
  std::unique_ptr<fisher::Head> head_;
  std::vector<std::int64_t> first_tensor_;  // of each layer
  std::int64_t tensors_ = 0;
  std::vector<at::Tensor> tails_;  // [tensors of all layers, windows], each [tokens - 1, channels]
  std::mutex mutex_;               // of progress
};

}  // namespace

ContinuationNeed continuation_need(const Session& session, const TokenWindows& windows, std::int64_t tokens,
                                   std::int64_t memory_bytes) {
  const auto number = static_cast<std::int64_t>(at::elementSize(session.placement.dtype));
  ContinuationNeed need;
  std::int64_t cached = 0;
  for (int layer = 0; layer < session.num_layers(); ++layer) {
    need.weight_bytes += bytes_of(session, session.model->block_weights(layer));
    for (const formats::CachedTensor& tensor : session.model->cache(layer)) cached += tensor.channels();
  }
  need.weight_bytes += bytes_of(session, session.model->head_weights());
  need.keeps_weights = need.weight_bytes <= memory_bytes / 2;
  need.tail_bytes = windows.samples * tokens * cached * number;
  need.state_bytes = windows.tokens() * (cached + session.config().hidden_size) * number;
  return need;
}

TokenWindows continue_windows(const Session& session, const TokenWindows& windows,
                              const ContinuationOptions& options, base::Progress& progress) {
  return Continuation(session, windows, options, progress).run();
}

}  // namespace kvcal::calib
