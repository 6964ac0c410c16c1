// calib/model/model_config.h: what config.json says of a model, with the family's defaults resolved, and
// how a family reads it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace kvcal::calib {

/// What attention of one layer looks like, and what its codebook is laid out by.
struct LayerConfig {
  int num_attention_heads = 0;
  int num_kv_heads = 0;  ///< num_attention_heads is a multiple of it
  int head_dim = 0;      ///< of queries and keys
  int value_dim = 0;
  std::string rope_json = "null";  ///< canonical JSON of the rotary embedding; null: none
  std::int64_t window = 0;  ///< a token attends to itself and the window - 1 before it; 0: to all before it

  bool operator==(const LayerConfig&) const = default;
};

/// What every family has; what only one needs stands in its own file.
struct ModelConfig {
  std::string architecture;  ///< "LlamaForCausalLM"
  std::int64_t hidden_size = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_positions = 0;  ///< the longest context it was trained for; 0: not said
  std::string weight_dtype;        ///< torch_dtype of the file, for information
  std::vector<LayerConfig> layers;
  /// Canonical JSON of every field that the mathematics uses, written by the family: two models that compute
  /// differently from the same weights have different ones.
  std::string fingerprint_json;

  [[nodiscard]] int num_layers() const { return static_cast<int>(layers.size()); }
  /// SHA-256 of fingerprint_json: the codebook's config_sha256.
  [[nodiscard]] std::string sha256() const;
};

/// Typed access to a config.json whose errors name the file, the key, the value and what was expected.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::json& object, std::filesystem::path file);
  /// Integers in [minimum, 2^31). A missing or null key gives `fallback`;
  /// required where fallback is negative.
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

}  // namespace kvcal::calib
