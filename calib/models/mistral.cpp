// Mistral 7B and its kin: Llama's decoder with a sliding window and other defaults.
#include "calib/models/llama.h"

namespace kvcal::calib {
namespace {

ModelConfig read_mistral_config(const ConfigReader& config) {
  ModelConfig model = read_llama_config(config);
  // transformers' MistralConfig: 8 kv heads, and a window of 4096, where the file says nothing; null is no
  // window.
  if (config.is_null("num_key_value_heads")) {
    if (model.num_attention_heads % 8 != 0)
      config.fail("num_key_value_heads", "expected a divisor of num_attention_heads");
    model.num_kv_heads = 8;
  }
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
