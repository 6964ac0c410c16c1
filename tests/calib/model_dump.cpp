// model_dump MODEL TOKENS.npy OUT.safetensors [DTYPE]: what the engine computes for each sample, for
// comparison with another implementation: logits.S, keys.S.L, values.S.L and, over all samples, key_fisher.L,
// value_fisher.L (squared gradients summed per channel, no sinks left out), loss [samples].
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>

#include "calib/model/model.h"
#include "calib/tensor_output.h"
#include "calib/text/text_sampler.h"
#include "fisher/block_gradients.h"
#include "fisher/head_loss.h"
#include "formats/safetensors.h"

namespace {

using namespace kvcal;

void dump(const std::string& folder, const std::string& tokens, const std::string& out,
          at::ScalarType dtype) {
  const auto model = calib::load_model(
      calib::read_model_definition(folder),
      std::make_shared<const calib::WeightLoader>(folder, calib::Placement{.dtype = dtype}));
  const calib::ModelConfig& config = model->config();
  const auto windows = calib::load_tokens(tokens, config.vocab_size);
  const auto head = model->load_head();
  std::vector<at::Tensor> key_fisher(static_cast<std::size_t>(config.num_layers()));
  std::vector<at::Tensor> value_fisher = key_fisher;
  std::vector<float> losses;
  testing::TensorOutput output;
  for (std::int64_t s = 0; s < windows.samples; ++s) {
    std::vector<at::Tensor> inputs = {model->embed(windows.sample(s))};
    {
      const at::NoGradGuard no_graph;
      for (int l = 0; l < config.num_layers(); ++l)
        inputs.push_back(model->load_block(l)->forward(inputs.back(), nullptr));
      output.add("logits." + std::to_string(s), head->logits(inputs.back()));
    }
    auto loss = fisher::head_loss(*head, inputs.back(), windows.sample(s), true, 100);
    losses.push_back(static_cast<float>(loss.loss));
    at::Tensor gradient = loss.hidden_gradient;
    for (int l = config.num_layers() - 1; l >= 0; --l) {
      const auto at_layer = static_cast<std::size_t>(l);
      const auto result = fisher::block_gradients(*model->load_block(l), 2, inputs[at_layer], gradient, true);
      gradient = result.input_gradient;
      const std::string suffix = std::to_string(s) + "." + std::to_string(l);
      output.add("keys." + suffix, result.cached[0]);
      output.add("values." + suffix, result.cached[1]);
      const auto accumulate = [](at::Tensor& sum, const at::Tensor& g) {
        const at::Tensor squares = g.to(at::kDouble).square().sum(0);
        sum = sum.defined() ? sum + squares : squares;
      };
      accumulate(key_fisher[at_layer], result.gradients[0]);
      accumulate(value_fisher[at_layer], result.gradients[1]);
    }
  }
  for (int l = 0; l < config.num_layers(); ++l) {
    output.add("key_fisher." + std::to_string(l), key_fisher[static_cast<std::size_t>(l)]);
    output.add("value_fisher." + std::to_string(l), value_fisher[static_cast<std::size_t>(l)]);
  }
  output.add("loss", at::tensor(losses));
  output.write(out);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: model_dump MODEL TOKENS.npy OUT.safetensors [float32|bfloat16]\n");
    return 2;
  }
  try {
    const bool bfloat16 = argc > 4 && std::string(argv[4]) == "bfloat16";
    dump(argv[1], argv[2], argv[3], bfloat16 ? at::kBFloat16 : at::kFloat);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
