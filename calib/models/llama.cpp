#include "calib/models/llama.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "calib/attention.h"
#include "calib/linear.h"
#include "calib/rope.h"

namespace kvcal::calib {
namespace {

using Activation = at::Tensor (*)(const at::Tensor&);

// transformers' ACT2FN names, as far as models of this shape use them.
Activation find_activation(const std::string& name) {
  if (name == "silu" || name == "swish") return [](const at::Tensor& x) { return at::silu(x); };
  if (name == "gelu") return [](const at::Tensor& x) { return at::gelu(x); };
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") {
    return [](const at::Tensor& x) { return at::gelu(x, "tanh"); };
  }
  if (name == "relu") return [](const at::Tensor& x) { return at::relu(x); };
  return nullptr;
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + epsilon);
  return weight * (wide * scale).to(x.scalar_type());
}

struct Linear {
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out], or undefined
  at::Tensor operator()(const at::Tensor& x) const { return fixed_linear(x, weight, bias); }
};

/// The tensors of one layer: their shapes, and by them their values.
class LayerTensors {
 public:
  LayerTensors(const ModelConfig& config, int layer) : prefix_(base::concat("model.layers.", layer, ".")) {
    const std::int64_t hidden = config.hidden_size;
    const std::int64_t query = std::int64_t{config.num_attention_heads} * config.head_dim;
    const std::int64_t kv = std::int64_t{config.num_kv_heads} * config.head_dim;
    add("input_layernorm.weight", {hidden});
    add("post_attention_layernorm.weight", {hidden});
    add_linear("self_attn.q_proj", query, hidden, config.attention_bias);
    add_linear("self_attn.k_proj", kv, hidden, config.attention_bias);
    add_linear("self_attn.v_proj", kv, hidden, config.attention_bias);
    add_linear("self_attn.o_proj", hidden, query, config.attention_bias);
    add_linear("mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias);
    add_linear("mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias);
    add_linear("mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias);
  }

  [[nodiscard]] const std::vector<TensorSpec>& specs() const { return specs_; }

  [[nodiscard]] at::Tensor load(const WeightLoader& weights, const std::string& name) const {
    return weights.load(*find(name));
  }
  [[nodiscard]] Linear load_linear(const WeightLoader& weights, const std::string& name) const {
    const TensorSpec* bias = find(name + ".bias");
    return {load(weights, name + ".weight"), bias != nullptr ? weights.load(*bias) : at::Tensor()};
  }

 private:
  void add(const std::string& name, std::vector<std::int64_t> shape) {
    specs_.push_back({prefix_ + name, std::move(shape)});
  }
  void add_linear(const std::string& name, std::int64_t out, std::int64_t in, bool bias) {
    add(name + ".weight", {out, in});
    if (bias) add(name + ".bias", {out});
  }
  [[nodiscard]] const TensorSpec* find(const std::string& name) const {
    const auto found = std::ranges::find(specs_, prefix_ + name, &TensorSpec::name);
    return found != specs_.end() ? &*found : nullptr;
  }

  std::string prefix_;
  std::vector<TensorSpec> specs_;
};

class LlamaBlock : public fisher::Block {
 public:
  LlamaBlock(const ModelConfig& config, const WeightLoader& weights, int layer,
             std::shared_ptr<RotaryCache> rotary)
      : config_(config), rotary_(std::move(rotary)), activation_(find_activation(config.activation)) {
    const LayerTensors tensors(config, layer);
    input_norm_ = tensors.load(weights, "input_layernorm.weight");
    query_ = tensors.load_linear(weights, "self_attn.q_proj");
    key_ = tensors.load_linear(weights, "self_attn.k_proj");
    value_ = tensors.load_linear(weights, "self_attn.v_proj");
    output_ = tensors.load_linear(weights, "self_attn.o_proj");
    mlp_norm_ = tensors.load(weights, "post_attention_layernorm.weight");
    gate_ = tensors.load_linear(weights, "mlp.gate_proj");
    up_ = tensors.load_linear(weights, "mlp.up_proj");
    down_ = tensors.load_linear(weights, "mlp.down_proj");
  }

  [[nodiscard]] at::Tensor forward(const at::Tensor& hidden, fisher::Taps* taps) const override {
    const at::Tensor attended = hidden + attention(rms_norm(hidden, input_norm_, config_.rms_norm_eps), taps);
    return attended + mlp(rms_norm(attended, mlp_norm_, config_.rms_norm_eps));
  }

 private:
  [[nodiscard]] at::Tensor attention(const at::Tensor& x, fisher::Taps* taps) const {
    const at::Tensor keys = key_(x);
    const at::Tensor values = value_(x);
    if (taps != nullptr) *taps = {keys, values};
    const RotaryTable table = rotary_->table(x.size(0));
    const at::Tensor q =
        rotate(query_(x).unflatten(1, {config_.num_attention_heads, config_.head_dim}), table);
    const at::Tensor k = rotate(keys.unflatten(1, {config_.num_kv_heads, config_.head_dim}), table);
    const at::Tensor v = values.unflatten(1, {config_.num_kv_heads, config_.head_dim});
    return output_(causal_attention(q, k, v, config_.sliding_window));
  }

  [[nodiscard]] at::Tensor mlp(const at::Tensor& x) const { return down_(activation_(gate_(x)) * up_(x)); }

  ModelConfig config_;
  std::shared_ptr<RotaryCache> rotary_;
  Activation activation_;
  at::Tensor input_norm_, mlp_norm_;
  Linear query_, key_, value_, output_, gate_, up_, down_;
};

class LlamaHead : public fisher::Head {
 public:
  LlamaHead(at::Tensor norm, at::Tensor projection, double epsilon)
      : norm_(std::move(norm)), projection_(std::move(projection)), epsilon_(epsilon) {}
  [[nodiscard]] at::Tensor logits(const at::Tensor& hidden) const override {
    return fixed_linear(rms_norm(hidden, norm_, epsilon_), projection_).to(at::kFloat);
  }

 private:
  at::Tensor norm_, projection_;
  double epsilon_;
};

class LlamaModel : public Model {
 public:
  LlamaModel(ModelConfig config, std::shared_ptr<const WeightLoader> weights)
      : config_(std::move(config)),
        weights_(std::move(weights)),
        rotary_(std::make_shared<RotaryCache>(config_.rope, config_.head_dim)) {}

  [[nodiscard]] const ModelConfig& config() const override { return config_; }

  [[nodiscard]] LayerGeometry geometry(int /*layer*/) const override {
    return {config_.num_kv_heads, config_.head_dim, config_.head_dim, config_.rope.to_json(),
            config_.sliding_window};
  }

  [[nodiscard]] at::Tensor embed(std::span<const std::int32_t> tokens) const override {
    const at::Tensor ids = at::from_blob(const_cast<std::int32_t*>(tokens.data()),
                                         {static_cast<std::int64_t>(tokens.size())}, at::kInt)
                               .to(at::kLong);
    return weights_->load_rows(embedding(), ids);
  }

  [[nodiscard]] std::unique_ptr<fisher::Block> load_block(int layer) const override {
    return std::make_unique<LlamaBlock>(config_, *weights_, layer, rotary_);
  }

  [[nodiscard]] std::unique_ptr<fisher::Head> load_head() const override {
    return std::make_unique<LlamaHead>(weights_->load(norm()), weights_->load(projection()),
                                       config_.rms_norm_eps);
  }

  [[nodiscard]] std::vector<TensorSpec> embedding_tensors() const override { return {embedding()}; }

  [[nodiscard]] std::vector<TensorSpec> tensors(int layer) const override {
    if (layer >= config_.num_layers) return {norm(), projection()};
    return LayerTensors(config_, layer).specs();
  }

 private:
  static constexpr const char* kEmbedding = "model.embed_tokens.weight";
  static constexpr const char* kHead = "lm_head.weight";

  [[nodiscard]] TensorSpec norm() const { return {"model.norm.weight", {config_.hidden_size}}; }
  // Tied embeddings are stored once, under either name. A checkpoint that holds both means both, whatever its
  // config.json says (as transformers 5 reads it).
  [[nodiscard]] TensorSpec embedding() const {
    const bool under_head = config_.tied_embeddings && !weights_->contains(kEmbedding);
    return {under_head ? kHead : kEmbedding, {config_.vocab_size, config_.hidden_size}};
  }
  [[nodiscard]] TensorSpec projection() const {
    const bool under_embedding = config_.tied_embeddings && !weights_->contains(kHead);
    return {under_embedding ? kEmbedding : kHead, {config_.vocab_size, config_.hidden_size}};
  }

  ModelConfig config_;
  std::shared_ptr<const WeightLoader> weights_;
  std::shared_ptr<RotaryCache> rotary_;
};

void check_geometry(const ConfigReader& config, const ModelConfig& model) {
  if (model.num_attention_heads % model.num_kv_heads != 0) {
    config.fail("num_key_value_heads",
                base::concat("expected a divisor of num_attention_heads, ", model.num_attention_heads));
  }
  if (model.head_dim % 2 != 0 || model.head_dim < 4)
    config.fail("head_dim", "rotary embedding needs an even number from 4");
  if (find_activation(model.activation) == nullptr) {
    config.fail("hidden_act", "the activations known are silu, gelu, gelu_pytorch_tanh, gelu_new and relu");
  }
}

}  // namespace

ModelConfig read_llama_config(const ConfigReader& config, const LlamaDefaults& defaults) {
  ModelConfig model;
  model.hidden_size = config.integer("hidden_size", 1);
  model.intermediate_size = config.integer("intermediate_size", 1);
  model.num_layers = static_cast<int>(config.integer("num_hidden_layers", 1));
  if (model.num_layers > 9999) config.fail("num_hidden_layers", "expected at most 9999");
  model.num_attention_heads = static_cast<int>(config.integer("num_attention_heads", 1));
  // null means as many as query heads; a key that is not there means the family's default.
  const bool family_default = defaults.kv_heads > 0 && !config.has("num_key_value_heads");
  model.num_kv_heads = static_cast<int>(config.integer(
      "num_key_value_heads", 1, family_default ? defaults.kv_heads : model.num_attention_heads));
  const std::int64_t shared_dim = model.hidden_size / model.num_attention_heads;
  if (config.is_null("head_dim") && shared_dim * model.num_attention_heads != model.hidden_size) {
    config.fail("hidden_size",
                base::concat("without a head_dim, expected a multiple of num_attention_heads, ",
                             model.num_attention_heads));
  }
  model.head_dim = static_cast<int>(config.integer("head_dim", 1, shared_dim));
  model.vocab_size = config.integer("vocab_size", 1);
  model.max_positions = config.integer("max_position_embeddings", 1, defaults.max_positions);
  model.rms_norm_eps = config.positive("rms_norm_eps", 1e-6);
  model.activation = config.text("hidden_act", "silu");
  model.attention_bias = config.boolean("attention_bias", false);
  model.mlp_bias = config.boolean("mlp_bias", false);
  model.tied_embeddings = config.boolean("tie_word_embeddings", false);
  model.rope = read_rope_config(config, model.max_positions);
  model.weight_dtype = config.text("torch_dtype", config.text("dtype", ""));
  check_geometry(config, model);
  return model;
}

std::unique_ptr<Model> make_llama_model(const ModelConfig& config,
                                        std::shared_ptr<const WeightLoader> weights) {
  return std::make_unique<LlamaModel>(config, std::move(weights));
}

/// Llama 1, 2, 3, 3.1 to 3.3, and the many models that share its code.
Architecture llama() {
  return {"LlamaForCausalLM", "llama", [](const ConfigReader& config) { return read_llama_config(config); },
          make_llama_model};
}

}  // namespace kvcal::calib
