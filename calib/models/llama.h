// calib/models/llama.h: decoders of the Llama shape, on which other families build: RMSNorm, rotary GQA
// attention, gated MLP.
#pragma once

#include <memory>

#include "calib/model.h"

namespace kvcal::calib {

/// What a family takes where config.json says nothing; these are transformers' LlamaConfig.
struct LlamaDefaults {
  int kv_heads = 0;  ///< 0: as many as query heads
  std::int64_t max_positions = 2048;
};

/// The fields that all families of this shape write the same way.
[[nodiscard]] ModelConfig read_llama_config(const ConfigReader& config, const LlamaDefaults& defaults = {});

/// A decoder with the tensor names of transformers' LlamaForCausalLM.
[[nodiscard]] std::unique_ptr<Model> make_llama_model(const ModelConfig& config,
                                                      std::shared_ptr<const WeightLoader> weights);

}  // namespace kvcal::calib
