// Mistral 7B and its kin: Llama's decoder with a sliding window and other defaults.
#include "calib/models/llama.h"

namespace kvcal::calib {
namespace {

ModelConfig read_mistral_config(const ConfigReader& config) {
  // As transformers' MistralConfig where the file says nothing; a window of null is none.
  ModelConfig model = read_llama_config(config, {.kv_heads = 8, .max_positions = 131072});
  model.sliding_window = config.has("sliding_window") ? config.integer("sliding_window", 0, 0) : 4096;
  model.attention_bias = false;
  model.mlp_bias = false;
  return model;
}

}  // namespace

Architecture mistral() {
  return {"MistralForCausalLM", "mistral", read_mistral_config, make_llama_model};
}

}  // namespace kvcal::calib
