// calib/model_config.h: what config.json says of a model, with the family's defaults resolved.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace kvcal::calib {

/// Rotary position embedding (Su et al. 2021) and how its frequencies are scaled for longer contexts. The
/// fields that a type does not use keep their defaults.
struct RopeConfig {
  std::string type = "default";  ///< default, linear, dynamic, llama3
  double theta = 10000;
  double factor = 1;            ///< linear, dynamic, llama3
  double low_freq_factor = 1;   ///< llama3
  double high_freq_factor = 4;  ///< llama3
  std::int64_t original_max_positions =
      0;  ///< dynamic: where stretching begins; llama3: the length of the first training

  /// The fields that the type uses, as canonical JSON: the codebook's `rope`.
  [[nodiscard]] std::string to_json() const;
};

struct ModelConfig {
  std::string architecture;  ///< "LlamaForCausalLM"
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  int num_layers = 0;
  int num_attention_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_positions = 0;  ///< the longest context it was trained for
  double rms_norm_eps = 1e-6;
  std::string activation = "silu";
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tied_embeddings = false;
  std::int64_t sliding_window =
      0;  ///< a token attends to itself and the window - 1 before it; 0: to all before it
  RopeConfig rope;
  std::string weight_dtype;  ///< torch_dtype of the file, for information

  /// SHA-256 of the canonical JSON of all fields above that the mathematics uses: the codebook's
  /// config_sha256.
  [[nodiscard]] std::string sha256() const;
};

/// Typed access to a config.json whose errors name the file, the key, the value and what was expected.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::json& object, std::filesystem::path file);
  /// Integers in [minimum, 2^31). A missing or null key gives `fallback`; required where fallback is
  /// negative.
  [[nodiscard]] std::int64_t integer(const std::string& key, std::int64_t minimum,
                                     std::int64_t fallback = -1) const;
  /// Finite and positive. Required where fallback is 0.
  [[nodiscard]] double positive(const std::string& key, double fallback = 0) const;
  [[nodiscard]] bool boolean(const std::string& key, bool fallback) const;
  [[nodiscard]] std::string text(const std::string& key, const std::string& fallback) const;
  /// Whether the key is there, null or not.
  [[nodiscard]] bool has(const std::string& key) const;
  [[nodiscard]] bool is_null(const std::string& key) const;
  [[nodiscard]] const nlohmann::json& object() const { return object_; }
  [[nodiscard]] const std::filesystem::path& file() const { return file_; }
  /// Throws InvalidInput: "FILE: 'KEY' is VALUE; REASON".
  [[noreturn]] void fail(const std::string& key, const std::string& reason) const;

 private:
  const nlohmann::json& object_;
  std::filesystem::path file_;
};

/// rope_theta and rope_scaling, or rope_parameters (transformers 5), of a config. Throws InvalidInput for a
/// type that is not known, naming it.
[[nodiscard]] RopeConfig read_rope_config(const ConfigReader& config, std::int64_t max_positions);

}  // namespace kvcal::calib
