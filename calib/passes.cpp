#include "calib/passes.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "calib/machine.h"
#include "calib/tensor_memory.h"
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

// Puts a sample's rows into a matrix, its sinks left out, in float.
void put_rows(Matrix& matrix, std::int64_t row, const at::Tensor& x, std::int64_t sinks) {
  const at::Tensor kept = x.slice(0, sinks).to(at::kFloat).contiguous();
  const auto* data = kept.const_data_ptr<float>();
  std::copy(data, data + kept.numel(), matrix.row(row).data());
}

}  // namespace

Passes::Passes(const CalibrationJob& job, const WorkFolder& folder, base::Progress& progress,
               RemainingWork left, int lanes, std::int64_t cache_bytes)
    : job_(job),
      folder_(folder),
      progress_(progress),
      left_(std::move(left)),
      layers_(job.config.num_layers),
      lanes_(lanes, job.threads),
      hidden_(sample_lengths(job.windows), job.config.hidden_size, job.weights->dtype(), cache_bytes / 4 * 3,
              [&folder](int layer) { return folder.hidden_file(layer); }),
      gradients_(sample_lengths(job.windows), job.config.hidden_size, job.weights->dtype(), cache_bytes / 4,
                 [&folder](int layer) { return folder.gradient_file(layer); }) {
  std::int64_t row = 0;
  for (const std::int64_t length : sample_lengths(job.windows)) {
    first_row_.push_back(row);
    row += length - job.options.sinks;
  }
}

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

// Progress is counted in tokens that have gone through all of the stage's blocks.
void Passes::begin_stage(const char* name, int layers) {
  stage_layers_ = std::max(layers, 1);
  stage_done_ = 0;
  progress_.begin_stage(name, job_.windows.tokens(), "tokens");
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
    stage_done_ += static_cast<std::int64_t>(job_.windows.sample(sample).size());
    progress_.advance(stage_done_ / stage_layers_, detail);
  });
}

void Passes::embed_samples() {
  const at::NoGradGuard no_graph;
  const std::vector<TensorSpec> specs = job_.model->embedding_tensors();
  for (const TensorSpec& spec : specs) job_.weights->check_values(spec);
  for (std::int64_t i = 0; i < samples(); ++i) {
    const at::Tensor embedded = job_.model->embed(job_.windows.sample(i));
    check_finite(embedded, 0, i, "embeddings");
    hidden_.put(0, i, embedded);
  }
  hidden_.finish(0);
  job_.weights->dont_need(specs);
}

void Passes::forward() {
  if (left_.hidden[0]) embed_samples();
  if (left_.forward_layers() == 0) return;
  begin_stage("forward", left_.forward_layers());
  for (int layer = 0; layer < layers_; ++layer) {
    if (!left_.hidden[static_cast<std::size_t>(layer) + 1]) continue;
    job_.weights->will_need(job_.model->tensors(layer + 1));
    {
      const auto block = job_.model->load_block(layer);
      for_each_sample(layer_detail(layer, layers_), [&](std::int64_t i) {
        const at::NoGradGuard no_graph;
        const at::Tensor output = block->forward(hidden_.get(layer, i), nullptr);
        check_finite(output, layer, i, "activations");
        hidden_.put(layer + 1, i, output);
      });
    }
    hidden_.finish(layer + 1);
    job_.weights->dont_need(job_.model->tensors(layer));
  }
  end_stage();
}

std::vector<double> Passes::head() {
  std::vector<double> losses(static_cast<std::size_t>(samples()));
  const bool with_gradient = left_.gradient.back();
  begin_stage("loss", 1);
  {
    const auto head = job_.model->load_head();
    for_each_sample("head", [&](std::int64_t i) {
      const auto result = fisher::head_loss(*head, hidden_.get(layers_, i), job_.windows.sample(i),
                                            with_gradient, fisher::head_rows(job_.config.vocab_size));
      check_finite(at::scalar_tensor(result.loss), layers_, i, "logits");
      if (with_gradient) {
        check_finite(result.hidden_gradient, layers_, i, "gradients");
        gradients_.put(layers_, i, result.hidden_gradient);
      }
      losses[static_cast<std::size_t>(i)] = result.loss;
    });
  }
  if (with_gradient) gradients_.finish(layers_);
  folder_.save_losses(losses);
  hidden_.drop(layers_);
  job_.weights->dont_need(job_.model->tensors(layers_));
  end_stage();
  return losses;
}

void Passes::begin_backward() {
  begin_stage("backward", left_.backward_layers());
}

LayerCapture Passes::make_capture(int layer) const {
  const auto geometry = job_.model->geometry(layer);
  const std::int64_t rows = job_.windows.tokens() - samples() * job_.options.sinks;
  LayerCapture capture;
  capture.layer = layer;
  for (auto [tensor, dim] :
       {std::pair{&capture.keys, geometry.key_dim}, std::pair{&capture.values, geometry.value_dim}}) {
    tensor->x = Matrix(rows, std::int64_t{geometry.kv_heads} * dim);
    if (job_.with_gradients()) tensor->gradients = Matrix(rows, std::int64_t{geometry.kv_heads} * dim);
  }
  return capture;
}

// capture: null where only the gradient at the input is wanted.
void Passes::capture_sample(const fisher::Block& block, int layer, std::int64_t sample, bool with_input,
                            LayerCapture* capture) {
  const at::Tensor input = hidden_.get(layer, sample);
  const fisher::BlockGradients result =
      job_.with_gradients()
          ? fisher::block_gradients(block, input, gradients_.get(layer + 1, sample), with_input)
          : fisher::block_taps(block, input);
  if (with_input) {
    check_finite(result.input_gradient, layer, sample, "gradients");
    gradients_.put(layer, sample, result.input_gradient);
  }
  if (capture == nullptr) return;
  const std::int64_t row = first_row_[static_cast<std::size_t>(sample)];
  const auto put = [&](Matrix& matrix, const at::Tensor& x, const char* what) {
    check_finite(x, layer, sample, what);
    put_rows(matrix, row, x, job_.options.sinks);
  };
  put(capture->keys.x, result.keys, "keys");
  put(capture->values.x, result.values, "values");
  if (!job_.with_gradients()) return;
  put(capture->keys.gradients, result.key_gradients, "gradients of keys");
  put(capture->values.gradients, result.value_gradients, "gradients of values");
}

std::optional<LayerCapture> Passes::backward_layer(int layer) {
  const auto index = static_cast<std::size_t>(layer);
  std::optional<LayerCapture> capture;
  if (left_.fit[index]) capture = make_capture(layer);
  const bool with_input = layer > 0 && left_.gradient[index];
  if (layer > 0) job_.weights->will_need(job_.model->tensors(layer - 1));
  {
    const auto block = job_.model->load_block(layer);
    for_each_sample(layer_detail(layer, layers_), [&](std::int64_t i) {
      capture_sample(*block, layer, i, with_input, capture ? &*capture : nullptr);
    });
  }
  if (with_input) gradients_.finish(layer);
  job_.weights->dont_need(job_.model->tensors(layer));
  return capture;
}

void Passes::layer_done(int layer) {
  hidden_.drop(layer);
  gradients_.drop(layer + 1);
}

}  // namespace kvcal::calib
