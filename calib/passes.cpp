#include "calib/passes.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "fisher/block_gradients.h"
#include "fisher/head_loss.h"

namespace kvcal::calib {
namespace {

std::vector<std::int64_t> sample_lengths(const TokenWindows& windows) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < windows.samples; ++i)
    lengths.push_back(static_cast<std::int64_t>(windows.sample(i).size()));
  return lengths;
}

std::string layer_detail(int layer, int layers) {
  return base::concat("layer ", layer + 1, " of ", layers);
}

// Appends a sample's rows, its sinks left out, in float.
void append_rows(Matrix& matrix, std::int64_t row, const at::Tensor& x, std::int64_t sinks) {
  const at::Tensor kept = x.slice(0, sinks).to(at::kFloat).contiguous();
  const auto* data = kept.const_data_ptr<float>();
  std::copy(data, data + kept.numel(), matrix.row(row).data());
}

}  // namespace

Passes::Passes(const CalibrationJob& job, const WorkFolder& folder, base::Progress& progress,
               std::int64_t cache_bytes)
    : job_(job),
      folder_(folder),
      progress_(progress),
      layers_(job.config.num_layers),
      hidden_(sample_lengths(job.windows), job.config.hidden_size, job.weights->dtype(), cache_bytes / 4 * 3,
              [&folder](int layer) { return folder.hidden_file(layer); }),
      gradients_(sample_lengths(job.windows), job.config.hidden_size, job.weights->dtype(), cache_bytes / 4,
                 [&folder](int layer) { return folder.gradient_file(layer); }) {}

void Passes::check_finite(const at::Tensor& x, int layer, std::int64_t sample, const char* what) const {
  const auto [low, high] = at::aminmax(x.detach());
  const at::Tensor bounds = at::stack({low, high}).to(at::kFloat);
  if (at::isfinite(bounds).all().item<bool>()) return;
  const std::string place = layer < layers_ ? base::concat("layer ", layer) : std::string("the head");
  throw base::InvalidInput(base::concat(
      job_.folder.path.string(), ": ", place, ", sample ", sample, ": ", what, " hold NaN or infinity",
      job_.options.dtype == "bfloat16" ? "; try --dtype float32"
                                       : "; the checkpoint is damaged or the text is not its kind"));
}

bool Passes::forward_done() const {
  return hidden_.finished(layers_) || folder_.losses().has_value();
}

void Passes::embed_samples() {
  const at::NoGradGuard no_graph;
  for (const TensorSpec& spec : job_.model->embedding_tensors()) job_.weights->check_values(spec);
  for (std::int64_t i = 0; i < samples(); ++i) {
    const at::Tensor embedded = job_.model->embed(job_.windows.sample(i));
    check_finite(embedded, 0, i, "embeddings");
    hidden_.put(0, i, embedded);
  }
  hidden_.finish(0);
}

void Passes::forward() {
  if (forward_done()) return;
  int layer = layers_;
  while (layer > 0 && !hidden_.finished(layer)) --layer;
  const std::int64_t tokens = job_.windows.tokens();
  progress_.begin_stage("forward", tokens * layers_, "tokens");
  if (!hidden_.finished(layer)) embed_samples();
  const at::NoGradGuard no_graph;
  std::int64_t done = tokens * layer;
  for (; layer < layers_; ++layer) {
    job_.weights->will_need(job_.model->tensors(layer + 1));
    {
      const auto block = job_.model->load_block(layer);
      for (std::int64_t i = 0; i < samples(); ++i) {
        progress_.check_interrupted();
        const at::Tensor output = block->forward(hidden_.get(layer, i), nullptr);
        check_finite(output, layer, i, "activations");
        hidden_.put(layer + 1, i, output);
        done += output.size(0);
        progress_.advance(done, layer_detail(layer, layers_));
      }
    }
    hidden_.finish(layer + 1);
    job_.weights->dont_need(job_.model->tensors(layer));
  }
  progress_.end_stage();
}

double Passes::head() {
  auto losses = folder_.losses();
  if (!losses) {
    losses.emplace();
    progress_.begin_stage("loss", job_.windows.tokens(), "tokens");
    {
      const auto head = job_.model->load_head();
      std::int64_t done = 0;
      for (std::int64_t i = 0; i < samples(); ++i) {
        progress_.check_interrupted();
        const at::Tensor hidden = hidden_.get(layers_, i);
        const auto result = fisher::head_loss(*head, hidden, job_.windows.sample(i), with_gradients());
        check_finite(at::scalar_tensor(result.loss), layers_, i, "logits");
        if (with_gradients()) {
          check_finite(result.hidden_gradient, layers_, i, "gradients");
          gradients_.put(layers_, i, result.hidden_gradient);
        }
        losses->push_back(result.loss);
        done += hidden.size(0);
        progress_.advance(done, "head");
      }
    }
    if (with_gradients()) gradients_.finish(layers_);
    folder_.save_losses(*losses);
    hidden_.drop(layers_);
    job_.weights->dont_need(job_.model->tensors(layers_));
    progress_.end_stage();
  }
  return std::accumulate(losses->begin(), losses->end(), 0.0) / static_cast<double>(losses->size());
}

LayerCapture Passes::backward_layer(int layer) {
  const auto geometry = job_.model->geometry(layer);
  const std::int64_t sinks = job_.options.sinks;
  const std::int64_t rows = job_.windows.tokens() - samples() * sinks;
  if (!hidden_.finished(layer) || (with_gradients() && !gradients_.finished(layer + 1))) {
    throw base::InvalidInput(base::concat(folder_.path().string(), ": what layer ", layer,
                                          " goes on from is gone; remove the folder to start anew"));
  }
  LayerCapture capture;
  capture.layer = layer;
  for (auto [tensor, dim] :
       {std::pair{&capture.keys, geometry.key_dim}, std::pair{&capture.values, geometry.value_dim}}) {
    tensor->x = Matrix(rows, std::int64_t{geometry.kv_heads} * dim);
    if (with_gradients()) tensor->gradients = Matrix(rows, std::int64_t{geometry.kv_heads} * dim);
  }
  if (layer > 0) job_.weights->will_need(job_.model->tensors(layer - 1));
  const bool with_input = with_gradients() && layer > 0;
  {
    const auto block = job_.model->load_block(layer);
    std::int64_t row = 0;
    for (std::int64_t i = 0; i < samples(); ++i) {
      progress_.check_interrupted();
      const at::Tensor input = hidden_.get(layer, i);
      const fisher::BlockGradients result =
          with_gradients() ? fisher::block_gradients(*block, input, gradients_.get(layer + 1, i), with_input)
                           : fisher::block_taps(*block, input);
      check_finite(result.keys, layer, i, "keys");
      check_finite(result.values, layer, i, "values");
      append_rows(capture.keys.x, row, result.keys, sinks);
      append_rows(capture.values.x, row, result.values, sinks);
      if (with_gradients()) {
        check_finite(result.key_gradients, layer, i, "gradients of keys");
        check_finite(result.value_gradients, layer, i, "gradients of values");
        append_rows(capture.keys.gradients, row, result.key_gradients, sinks);
        append_rows(capture.values.gradients, row, result.value_gradients, sinks);
      }
      if (with_input) {
        check_finite(result.input_gradient, layer, i, "gradients");
        gradients_.put(layer, i, result.input_gradient);
      }
      row += input.size(0) - sinks;
      progress_.advance(job_.windows.tokens() * (layers_ - 1 - layer) + row + sinks * (i + 1),
                        layer_detail(layer, layers_));
    }
  }
  if (with_input) gradients_.finish(layer);
  job_.weights->dont_need(job_.model->tensors(layer));
  return capture;
}

void Passes::layer_saved(int layer) {
  hidden_.drop(layer);
  gradients_.drop(layer + 1);
}

}  // namespace kvcal::calib
