// calib/model/families/llama.h: decoders of the Llama shape, on which other families build: RMSNorm, rotary
// GQA attention, gated MLP.
#pragma once

#include <cstdint>
#include <string>

#include "calib/model/model.h"
#include "calib/model/parts/activation.h"
#include "calib/model/parts/rope.h"

namespace kvcal::calib {

/// What a family takes where config.json says nothing; these are transformers' LlamaConfig.
struct LlamaDefaults {
  int kv_heads = 0;  ///< 0: as many as query heads
  std::int64_t max_positions = 2048;
};

/// What config.json says of a decoder of this shape; all layers are alike.
struct LlamaConfig {
  /// define_llama() writes fingerprint_json, and layers where a family has not filled them: by turns, say.
  ModelConfig common;
  int num_layers = 0;
  int num_attention_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  ///< of queries, keys and values
  std::int64_t intermediate_size = 0;
  double rms_norm_eps = 1e-6;
  std::string activation_name = "silu";  ///< as config.json spells it: the fingerprint is of the text
  Activation activation = Activation::silu;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tied_embeddings = false;
  std::int64_t sliding_window = 0;  ///< as LayerConfig's window
  RopeConfig rope;
  /// An object of the fields that only one family's mathematics uses: part of its fingerprint, and of no other's.
  std::string more_fields_json = "{}";
};

/// The fields that all families of this shape write the same way. architecture: the family's name. Throws
/// InvalidInput naming file, key and value.
[[nodiscard]] LlamaConfig read_llama_config(const ConfigReader& config, const std::string& architecture,
                                            const LlamaDefaults& defaults = {});

/// A decoder with the tensor names of transformers' LlamaForCausalLM.
[[nodiscard]] ModelDefinition define_llama(LlamaConfig config);

}  // namespace kvcal::calib
