#include "fisher/block_gradients.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include "base/error.h"

namespace kvcal::fisher {

BlockGradients block_gradients(const Block& block, const at::Tensor& input, const at::Tensor& output_gradient,
                               bool with_input) {
  const at::AutoGradMode with_graph(true);
  // The input is a leaf even where its own gradient is not wanted: the graph needs a root to hang from.
  const at::Tensor leaf = input.detach().requires_grad_(true);
  Taps taps;
  const at::Tensor output = block.forward(leaf, &taps);
  if (!taps.keys.defined() || !taps.values.defined())
    throw base::Error("a block did not report its keys and values");

  torch::autograd::variable_list wanted = {taps.keys, taps.values};
  if (with_input) wanted.push_back(leaf);
  const torch::autograd::variable_list gradients = torch::autograd::grad({output}, wanted, {output_gradient});

  BlockGradients result;
  result.keys = taps.keys.detach();
  result.values = taps.values.detach();
  result.key_gradients = gradients[0];
  result.value_gradients = gradients[1];
  if (with_input) result.input_gradient = gradients[2];
  return result;
}

BlockGradients block_taps(const Block& block, const at::Tensor& input) {
  const at::NoGradGuard no_graph;
  Taps taps;
  (void)block.forward(input, &taps);
  if (!taps.keys.defined() || !taps.values.defined())
    throw base::Error("a block did not report its keys and values");
  BlockGradients result;
  result.keys = taps.keys;
  result.values = taps.values;
  return result;
}

}  // namespace kvcal::fisher
