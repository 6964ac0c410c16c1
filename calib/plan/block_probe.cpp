#include "calib/plan/block_probe.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "calib/model/parts/attention.h"
#include "calib/plan/libtorch_threads.h"
#include "calib/plan/tensor_memory.h"
#include "fisher/block_gradients.h"

namespace kvcal::calib {
namespace {

constexpr std::int64_t kFewTokens = 64, kMoreTokens = 128;
constexpr int kRepeats = 3;

// Some numbers in [-1, 1], without touching the host program's random generator.
at::Tensor numbers(at::IntArrayRef shape, const Placement& placement) {
  const std::int64_t count = c10::multiply_integers(shape);
  return at::sin(at::arange(count, placement.options().dtype(at::kFloat))).view(shape).to(placement.dtype);
}

double best_seconds(const std::function<void()>& work) {
  double best = 1e300;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

BytesByTokens line_through(std::int64_t few, std::int64_t more) {
  const double per_token = static_cast<double>(more - few) / static_cast<double>(kMoreTokens - kFewTokens);
  return {std::max(0.0, static_cast<double>(few) - per_token * kFewTokens), per_token};
}

void probe_attention(const LayerConfig& layer, const Placement& placement, bool with_gradients,
                     BlockProbe& probe) {
  if (layer.num_attention_heads == 0) return;  // attends in another way
  const auto states = [&](int heads, int dim) {
    return numbers({kAttentionTokens, heads, dim}, placement).requires_grad_(with_gradients);
  };
  const at::Tensor q = states(layer.num_attention_heads, layer.head_dim);
  const at::Tensor k = states(layer.num_kv_heads, layer.head_dim);
  const at::Tensor v = states(layer.num_kv_heads, layer.value_dim);
  probe.attention_forward_seconds = best_seconds([&] {
    const at::NoGradGuard no_graph;
    (void)causal_attention(q, k, v, layer.window);
  });
  probe.attention_backward_seconds = probe.attention_forward_seconds;
  if (!with_gradients) return;
  probe.attention_backward_seconds = best_seconds([&] {
    const at::Tensor mixed = causal_attention(q, k, v, layer.window);
    (void)torch::autograd::grad({mixed}, {q, k, v}, {at::ones_like(mixed)});
  });
}

}  // namespace

BlockProbe probe_block(const Model& model, int layer, const Placement& placement, bool with_gradients) {
  const KeptLibtorchThreads kept;
  const std::int64_t hidden = model.config().hidden_size;
  const auto block = model.load_block(layer);
  const std::size_t cached = model.cache(layer).size();
  const auto states_of = [&](std::int64_t tokens) { return numbers({tokens, hidden}, placement); };
  const auto forward = [&](const at::Tensor& input) {
    const at::NoGradGuard no_graph;
    (void)block->forward(input, nullptr);
  };
  // As in the passes: what was read, what comes out, and copies of what is captured.
  const auto backward = [&](const at::Tensor& input, const at::Tensor& gradient) {
    const fisher::BlockGradients result = with_gradients
                                              ? fisher::block_gradients(*block, cached, input, gradient, true)
                                              : fisher::block_cache(*block, cached, input);
    for (const auto* tensors : {&result.cached, &result.gradients}) {
      for (const at::Tensor& x : *tensors) (void)x.slice(0, 1).contiguous();
    }
  };

  BlockProbe probe;
  std::int64_t forward_bytes[2], backward_bytes[2];
  const std::int64_t tokens[2] = {kFewTokens, kMoreTokens};
  at::set_num_threads(placement.threads);
  for (int i = 0; i < 2; ++i) {
    forward(states_of(tokens[i]));  // tables and libraries' own state are made once
    forward_bytes[i] = TensorMemory::count([&] { forward(states_of(tokens[i])); });
    backward_bytes[i] = TensorMemory::count([&] { backward(states_of(tokens[i]), states_of(tokens[i])); });
  }
  probe.forward_bytes = line_through(forward_bytes[0], forward_bytes[1]);
  probe.backward_bytes = line_through(backward_bytes[0], backward_bytes[1]);
  at::set_num_threads(1);
  const at::Tensor input = states_of(kMoreTokens);
  const at::Tensor gradient = states_of(kMoreTokens);
  probe.forward_seconds_per_token = best_seconds([&] { forward(input); }) / kMoreTokens;
  probe.backward_seconds_per_token = best_seconds([&] { backward(input, gradient); }) / kMoreTokens;
  probe_attention(model.config().layers[static_cast<std::size_t>(layer)], placement, with_gradients, probe);
  constexpr std::int64_t kSize = 512;
  const at::Tensor square = numbers({kSize, kSize}, placement);
  probe.product_rate = 2.0 * kSize * kSize * kSize / best_seconds([&] { (void)at::matmul(square, square); });
  return probe;
}

}  // namespace kvcal::calib
