#include "fisher/block_gradients.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "base/error.h"

namespace kvcal::fisher {
namespace {

/// Keeps what it is shown as cached, and replaces nothing.
class Watcher final : public CacheHook {
 public:
  explicit Watcher(std::size_t cached) : cached_(cached), rotated_(cached) {}

  at::Tensor show(std::size_t tensor, CachePoint point, const at::Tensor& x) override {
    if (tensor >= cached_.size())
      throw base::Error(
          base::concat("a block shows tensor ", tensor, " of ", cached_.size(), " that it caches"));
    if (point == CachePoint::cached && cached_[tensor].defined())
      throw base::Error(base::concat("a block shows tensor ", tensor, " twice"));
    (point == CachePoint::cached ? cached_ : rotated_)[tensor] = x;
    return x;
  }

  [[nodiscard]] std::vector<at::Tensor> take() {
    const auto missing = std::ranges::find_if(cached_, [](const at::Tensor& x) { return !x.defined(); });
    if (missing != cached_.end())
      throw base::Error(
          base::concat("a block did not show tensor ", missing - cached_.begin(), " that it caches"));
    return std::move(cached_);
  }
  [[nodiscard]] std::vector<at::Tensor> take_rotated() {
    for (at::Tensor& x : rotated_)
      if (x.defined()) x = x.detach();
    return std::move(rotated_);
  }

 private:
  std::vector<at::Tensor> cached_, rotated_;
};

}  // namespace

BlockGradients block_gradients(const Block& block, std::size_t cached, const at::Tensor& input,
                               const at::Tensor& output_gradient, bool with_input) {
  const at::AutoGradMode with_graph(true);
  // The input is a leaf even where its own gradient is not wanted: the graph needs a root to hang from.
  const at::Tensor leaf = input.detach().requires_grad_(true);
  Watcher watcher(cached);
  const at::Tensor output = block.forward(leaf, &watcher);

  BlockGradients result;
  result.cached = watcher.take();
  result.rotated = watcher.take_rotated();
  torch::autograd::variable_list wanted = result.cached;
  if (with_input) wanted.push_back(leaf);
  if (wanted.empty()) return result;
  result.gradients = torch::autograd::grad({output}, wanted, {output_gradient});
  if (with_input) {
    result.input_gradient = result.gradients.back();
    result.gradients.pop_back();
  }
  for (at::Tensor& x : result.cached) x = x.detach();
  return result;
}

BlockGradients block_cache(const Block& block, std::size_t cached, const at::Tensor& input) {
  const at::NoGradGuard no_graph;
  Watcher watcher(cached);
  (void)block.forward(input, &watcher);
  BlockGradients result;
  result.cached = watcher.take();
  result.rotated = watcher.take_rotated();
  return result;
}

}  // namespace kvcal::fisher
