#include "calib/engine/passes.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "calib/plan/machine.h"
#include "calib/plan/tensor_memory.h"
#include "fisher/head_loss.h"

namespace kvcal::calib {
namespace {

std::string layer_detail(int layer, int layers) {
  return base::concat("layer ", layer + 1, " of ", layers);
}

}  // namespace

Passes::Passes(const Session& session, const WorkFolder& folder, base::Progress& progress, RemainingWork left,
               const PassOptions& options)
    : session_(session),
      folder_(folder),
      progress_(progress),
      left_(std::move(left)),
      with_gradients_(options.with_gradients),
      lanes_(options.lanes, session.placement.threads),
      hidden_(session.sample_lengths(), session.config().hidden_size, session.placement.dtype,
              options.cache_bytes / 4 * 3, [&folder](int layer) { return folder.hidden_file(layer); }),
      gradients_(session.sample_lengths(), session.config().hidden_size, session.placement.dtype,
                 options.cache_bytes / 4, [&folder](int layer) { return folder.gradient_file(layer); }) {}

at::Tensor Passes::hidden(int layer, std::int64_t sample) {
  return hidden_.get(layer, sample).to(session_.placement.device);
}

// Progress is counted in tokens that have gone through all of the stage's blocks.
void Passes::begin_stage(const char* name, int layers) {
  stage_layers_ = std::max(layers, 1);
  stage_done_ = 0;
  progress_.begin_stage(name, session_.windows.tokens(), "tokens");
}

// So that no stage has to bear what the one before it had.
void Passes::end_stage() {
  progress_.end_stage();
  TensorMemory::release();
  release_freed_memory();
}

void Passes::for_each_sample(const std::string& detail, const std::function<void(std::int64_t)>& body) {
  lanes_.run(samples(), [&](std::int64_t sample) {
    {
      const std::scoped_lock lock(progress_mutex_);
      progress_.check_interrupted();
    }
    body(sample);
    const std::scoped_lock lock(progress_mutex_);
    stage_done_ += static_cast<std::int64_t>(session_.windows.sample(sample).size());
    progress_.advance(stage_done_ / stage_layers_, detail);
  });
}

void Passes::embed_samples() {
  const at::NoGradGuard no_graph;
  const std::vector<TensorSpec> specs = session_.model->embedding_weights();
  for (const TensorSpec& spec : specs) session_.weights->check_values(spec);
  for (std::int64_t i = 0; i < samples(); ++i) {
    const at::Tensor embedded = session_.model->embed(session_.windows.sample(i));
    require_finite(session_, embedded, layer_place(0), i, "embeddings");
    hidden_.put(0, i, embedded);
  }
  hidden_.finish(0);
  session_.weights->dont_need(specs);
}

void Passes::forward() {
  if (left_.hidden[0]) embed_samples();
  if (left_.forward_layers() == 0) return;
  begin_stage("forward", left_.forward_layers());
  const int layers = session_.num_layers();
  for (int layer = 0; layer < layers; ++layer) {
    if (!left_.hidden[static_cast<std::size_t>(layer) + 1]) continue;
    session_.weights->will_need(layer + 1 < layers ? session_.model->block_weights(layer + 1)
                                                   : session_.model->head_weights());
    {
      const auto block = session_.model->load_block(layer);
      for_each_sample(layer_detail(layer, layers), [&](std::int64_t i) {
        const at::NoGradGuard no_graph;
        const at::Tensor output = block->forward(hidden(layer, i), nullptr);
        require_finite(session_, output, layer_place(layer), i, "activations");
        hidden_.put(layer + 1, i, output);
      });
    }
    hidden_.finish(layer + 1);
    session_.weights->dont_need(session_.model->block_weights(layer));
  }
  end_stage();
}

std::vector<double> Passes::head() {
  std::vector<double> losses(static_cast<std::size_t>(samples()));
  const bool with_gradient = left_.gradient.back();
  const int layers = session_.num_layers();
  begin_stage("loss", 1);
  {
    const auto head = session_.model->load_head();
    for_each_sample("head", [&](std::int64_t i) {
      const auto result = fisher::head_loss(*head, hidden(layers, i), session_.windows.sample(i),
                                            with_gradient, fisher::head_rows(session_.config().vocab_size));
      require_finite(session_, at::scalar_tensor(result.loss), "the head", i, "logits");
      if (with_gradient) {
        require_finite(session_, result.hidden_gradient, "the head", i, "gradients");
        gradients_.put(layers, i, result.hidden_gradient);
      }
      losses[static_cast<std::size_t>(i)] = result.loss;
    });
  }
  if (with_gradient) gradients_.finish(layers);
  folder_.save_losses(losses);
  hidden_.drop(layers);
  session_.weights->dont_need(session_.model->head_weights());
  end_stage();
  return losses;
}

// A layer's gradients at what it caches, and at its input where that is wanted;
// without gradients what it caches.
fisher::BlockGradients Passes::recompute(const fisher::Block& block, int layer, std::int64_t sample,
                                         bool with_input) {
  const std::size_t cached = session_.model->cache(layer).size();
  const at::Tensor input = hidden(layer, sample);
  if (!with_gradients_) return fisher::block_cache(block, cached, input);
  const at::Tensor gradient = gradients_.get(layer + 1, sample).to(session_.placement.device);
  return fisher::block_gradients(block, cached, input, gradient, with_input);
}

// visitor: null where only the gradient at the input is wanted.
void Passes::visit_layer(int layer, LayerVisitor* visitor) {
  const bool with_input = layer > 0 && left_.gradient[static_cast<std::size_t>(layer)];
  if (layer > 0) session_.weights->will_need(session_.model->block_weights(layer - 1));
  if (visitor != nullptr) visitor->begin(layer);
  {
    const auto block = session_.model->load_block(layer);
    for_each_sample(layer_detail(layer, session_.num_layers()), [&](std::int64_t i) {
      const fisher::BlockGradients result = recompute(*block, layer, i, with_input);
      if (with_input) {
        require_finite(session_, result.input_gradient, layer_place(layer), i, "gradients");
        gradients_.put(layer, i, result.input_gradient);
      }
      if (visitor != nullptr) visitor->visit(layer, i, result);
    });
  }
  if (with_input) gradients_.finish(layer);
  session_.weights->dont_need(session_.model->block_weights(layer));
  if (visitor != nullptr) visitor->end(layer);
}

void Passes::backward(LayerVisitor& visitor) {
  begin_stage("backward", left_.backward_layers());
  for (int layer = session_.num_layers() - 1; layer >= 0; --layer) {
    if (!left_.visits(layer)) continue;
    const bool fitted = left_.fit[static_cast<std::size_t>(layer)];
    visit_layer(layer, fitted ? &visitor : nullptr);
    if (!fitted) layer_done(layer);
  }
}

void Passes::end_backward() {
  end_stage();
}

void Passes::layer_done(int layer) {
  hidden_.drop(layer);
  gradients_.drop(layer + 1);
}

}  // namespace kvcal::calib
