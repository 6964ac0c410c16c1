// calib/models/llama.h: decoders of the Llama shape, on which other families build: RMSNorm, rotary GQA
// attention, gated MLP.
#pragma once

#include <memory>

#include "calib/model.h"

namespace kvcal::calib {

/// The fields that all families of this shape write the same way; defaults as transformers' LlamaConfig.
[[nodiscard]] ModelConfig read_llama_config(const ConfigReader& config);

/// A decoder with the tensor names of transformers' LlamaForCausalLM.
[[nodiscard]] std::unique_ptr<Model> make_llama_model(const ModelConfig& config,
                                                      std::shared_ptr<const WeightLoader> weights);

}  // namespace kvcal::calib
