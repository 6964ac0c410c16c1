#include "calib/model/families/llama.h"

#include <ATen/ATen.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "calib/model/parts/gated_mlp.h"
#include "calib/model/parts/layer_tensors.h"
#include "calib/model/parts/linear.h"
#include "calib/model/parts/norm.h"
#include "calib/model/parts/rotary_attention.h"

namespace kvcal::calib {
namespace {

constexpr const char* kName = "LlamaForCausalLM";

LayerTensors layer_tensors(const LlamaConfig& config, int layer) {
  const std::int64_t hidden = config.common.hidden_size;
  const std::int64_t query = std::int64_t{config.num_attention_heads} * config.head_dim;
  const std::int64_t kv = std::int64_t{config.num_kv_heads} * config.head_dim;
  LayerTensors tensors(base::concat("model.layers.", layer, "."));
  tensors.add("input_layernorm.weight", {hidden});
  tensors.add("post_attention_layernorm.weight", {hidden});
  tensors.add_linear("self_attn.q_proj", query, hidden, config.attention_bias);
  tensors.add_linear("self_attn.k_proj", kv, hidden, config.attention_bias);
  tensors.add_linear("self_attn.v_proj", kv, hidden, config.attention_bias);
  tensors.add_linear("self_attn.o_proj", hidden, query, config.attention_bias);
  tensors.add_linear("mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias);
  tensors.add_linear("mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias);
  tensors.add_linear("mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias);
  return tensors;
}

/// transformers' LlamaDecoderLayer: each part works on a norm of the hidden state and is added to it.
class LlamaBlock : public fisher::Block {
 public:
  LlamaBlock(const LlamaConfig& config, const WeightLoader& weights, int layer,
             std::shared_ptr<RotaryCache> rotary) {
    const LayerTensors tensors = layer_tensors(config, layer);
    const auto norm = [&](const char* name) {
      return RmsNorm{tensors.load(weights, name), config.rms_norm_eps};
    };
    const auto linear = [&](const char* name) { return tensors.load_linear(weights, name); };
    attention_norm_ = norm("input_layernorm.weight");
    attention_ = {linear("self_attn.q_proj"),
                  linear("self_attn.k_proj"),
                  linear("self_attn.v_proj"),
                  linear("self_attn.o_proj"),
                  config.common.layers.at(static_cast<std::size_t>(layer)),
                  std::move(rotary)};
    mlp_norm_ = norm("post_attention_layernorm.weight");
    mlp_ = {linear("mlp.gate_proj"), linear("mlp.up_proj"), linear("mlp.down_proj"), config.activation};
  }

  [[nodiscard]] at::Tensor forward(const at::Tensor& hidden, fisher::CacheHook* hook) const override {
    const at::Tensor attended = hidden + attention_.forward(attention_norm_(hidden), hook);
    return attended + mlp_(mlp_norm_(attended));
  }

 private:
  RmsNorm attention_norm_, mlp_norm_;
  RotaryAttention attention_;
  GatedMlp mlp_;
};

class LlamaHead : public fisher::Head {
 public:
  LlamaHead(RmsNorm norm, Linear projection) : norm_(std::move(norm)), projection_(std::move(projection)) {}
  [[nodiscard]] at::Tensor logits(const at::Tensor& hidden) const override {
    return projection_(norm_(hidden)).to(at::kFloat);
  }

 private:
  RmsNorm norm_;
  Linear projection_;
};

class LlamaModel : public Model {
 public:
  LlamaModel(LlamaConfig config, std::shared_ptr<const WeightLoader> weights)
      : config_(std::move(config)),
        weights_(std::move(weights)),
        rotary_(std::make_shared<RotaryCache>(
            config_.rope, config_.head_dim, weights_ ? weights_->placement().device : at::Device(at::kCPU))) {
  }

  [[nodiscard]] const ModelConfig& config() const override { return config_.common; }

  [[nodiscard]] std::vector<formats::CachedTensor> cache(int layer) const override {
    return RotaryAttention::cache(config_.common.layers.at(static_cast<std::size_t>(layer)));
  }

  [[nodiscard]] at::Tensor embed(std::span<const std::int32_t> tokens) const override {
    const at::Tensor ids = at::from_blob(const_cast<std::int32_t*>(tokens.data()),
                                         {static_cast<std::int64_t>(tokens.size())}, at::kInt)
                               .to(at::kLong);
    return weights().load_rows(embedding(), ids);
  }

  [[nodiscard]] std::unique_ptr<fisher::Block> load_block(int layer) const override {
    return std::make_unique<LlamaBlock>(config_, weights(), layer, rotary_);
  }

  [[nodiscard]] std::unique_ptr<fisher::Head> load_head() const override {
    return std::make_unique<LlamaHead>(RmsNorm{weights().load(norm()), config_.rms_norm_eps},
                                       Linear{weights().load(projection()), {}});
  }

  [[nodiscard]] std::vector<TensorSpec> embedding_weights() const override { return {embedding()}; }

  [[nodiscard]] std::vector<TensorSpec> block_weights(int layer) const override {
    return layer_tensors(config_, layer).specs();
  }

  [[nodiscard]] std::vector<TensorSpec> head_weights() const override { return {norm(), projection()}; }

 private:
  static constexpr const char* kEmbedding = "model.embed_tokens.weight";
  static constexpr const char* kHead = "lm_head.weight";

  [[nodiscard]] TensorSpec norm() const { return {"model.norm.weight", {config_.common.hidden_size}}; }
  [[nodiscard]] const WeightLoader& weights() const {
    if (!weights_) throw base::Error("a model's layout has no weights to load");
    return *weights_;
  }
  // Without a checkpoint: as config.json has it, and under the embedding's name.
  [[nodiscard]] bool holds(const std::string& name) const {
    return weights_ ? weights_->contains(name) : name == kEmbedding;
  }
  // Tied embeddings are stored once, under either name. A checkpoint that holds both means both, whatever its
  // config.json says (as transformers 5 reads it).
  [[nodiscard]] TensorSpec embedding() const {
    const bool under_head = config_.tied_embeddings && !holds(kEmbedding);
    return {under_head ? kHead : kEmbedding, {config_.common.vocab_size, config_.common.hidden_size}};
  }
  [[nodiscard]] TensorSpec projection() const {
    const bool under_embedding = config_.tied_embeddings && !holds(kHead);
    return {under_embedding ? kEmbedding : kHead, {config_.common.vocab_size, config_.common.hidden_size}};
  }

  LlamaConfig config_;
  std::shared_ptr<const WeightLoader> weights_;
  std::shared_ptr<RotaryCache> rotary_;
};

void check_geometry(const ConfigReader& config, const LlamaConfig& model) {
  if (model.num_attention_heads % model.num_kv_heads != 0) {
    config.fail("num_key_value_heads",
                base::concat("expected a divisor of num_attention_heads, ", model.num_attention_heads));
  }
  if (model.head_dim % 2 != 0 || model.head_dim < 4)
    config.fail("head_dim", "rotary embedding needs an even number from 4");
}

std::string fingerprint(const LlamaConfig& config) {
  nlohmann::json fields = {{"architecture", config.common.architecture},
                           {"hidden_size", config.common.hidden_size},
                           {"intermediate_size", config.intermediate_size},
                           {"num_layers", config.num_layers},
                           {"num_attention_heads", config.num_attention_heads},
                           {"num_kv_heads", config.num_kv_heads},
                           {"head_dim", config.head_dim},
                           {"vocab_size", config.common.vocab_size},
                           {"rms_norm_eps", config.rms_norm_eps},
                           {"activation", config.activation_name},
                           {"attention_bias", config.attention_bias},
                           {"mlp_bias", config.mlp_bias},
                           {"tied_embeddings", config.tied_embeddings},
                           {"sliding_window", config.sliding_window},
                           {"rope", config.rope.fields()}};
  fields.update(nlohmann::json::parse(config.more_fields_json));
  return fields.dump();
}

Activation read_activation(const ConfigReader& config, const std::string& name) {
  const auto activation = parse_activation(name);
  if (!activation) config.fail("hidden_act", base::concat("the activations known are ", kActivationNames));
  return *activation;
}

}  // namespace

LlamaConfig read_llama_config(const ConfigReader& config, const std::string& architecture,
                              const LlamaDefaults& defaults) {
  LlamaConfig model;
  model.common.architecture = architecture;
  model.common.hidden_size = config.integer("hidden_size", 1);
  model.intermediate_size = config.integer("intermediate_size", 1);
  model.num_layers = static_cast<int>(config.integer("num_hidden_layers", 1));
  if (model.num_layers > 9999) config.fail("num_hidden_layers", "expected at most 9999");
  model.num_attention_heads = static_cast<int>(config.integer("num_attention_heads", 1));
  // null means as many as query heads; a key that is not there means the family's default.
  const bool family_default = defaults.kv_heads > 0 && !config.has("num_key_value_heads");
  model.num_kv_heads = static_cast<int>(config.integer(
      "num_key_value_heads", 1, family_default ? defaults.kv_heads : model.num_attention_heads));
  const std::int64_t shared_dim = model.common.hidden_size / model.num_attention_heads;
  if (config.is_null("head_dim") && shared_dim * model.num_attention_heads != model.common.hidden_size) {
    config.fail("hidden_size",
                base::concat("without a head_dim, expected a multiple of num_attention_heads, ",
                             model.num_attention_heads));
  }
  model.head_dim = static_cast<int>(config.integer("head_dim", 1, shared_dim));
  model.common.vocab_size = config.integer("vocab_size", 1);
  model.common.max_positions = config.integer("max_position_embeddings", 1, defaults.max_positions);
  model.rms_norm_eps = config.positive("rms_norm_eps", 1e-6);
  model.activation_name = config.text("hidden_act", "silu");
  model.attention_bias = config.boolean("attention_bias", false);
  model.mlp_bias = config.boolean("mlp_bias", false);
  model.tied_embeddings = config.boolean("tie_word_embeddings", false);
  model.rope = read_rope_config(config, model.common.max_positions);
  model.common.weight_dtype = config.text("torch_dtype", config.text("dtype", ""));
  check_geometry(config, model);
  model.activation = read_activation(config, model.activation_name);
  return model;
}

ModelDefinition define_llama(LlamaConfig config) {
  const LayerConfig layer{config.num_attention_heads, config.num_kv_heads,  config.head_dim, config.head_dim,
                          config.rope.to_json(),      config.sliding_window};
  if (config.common.layers.empty())
    config.common.layers.assign(static_cast<std::size_t>(config.num_layers), layer);
  config.common.fingerprint_json = fingerprint(config);
  return {config.common, [config](std::shared_ptr<const WeightLoader> weights) -> std::unique_ptr<Model> {
            return std::make_unique<LlamaModel>(config, std::move(weights));
          }};
}

/// Llama 1, 2, 3, 3.1 to 3.3, and the many models that share its code.
Architecture llama() {
  return {kName, "llama",
          [](const ConfigReader& config) { return define_llama(read_llama_config(config, kName)); }};
}

}  // namespace kvcal::calib
