// Mistral 7B and its kin: Llama's decoder with a sliding window and other defaults.
#include <utility>

#include "calib/model/families/llama.h"

namespace kvcal::calib {
namespace {

constexpr const char* kName = "MistralForCausalLM";

ModelDefinition read_mistral(const ConfigReader& config) {
  // As transformers' MistralConfig where the file says nothing; a window of null is none.
  LlamaConfig model = read_llama_config(config, kName, {.kv_heads = 8, .max_positions = 131072});
  model.sliding_window = config.has("sliding_window") ? config.integer("sliding_window", 0, 0) : 4096;
  model.attention_bias = false;
  model.mlp_bias = false;
  return define_llama(std::move(model));
}

}  // namespace

Architecture mistral() {
  return {kName, "mistral", read_mistral};
}

}  // namespace kvcal::calib
