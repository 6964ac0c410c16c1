// calib/model.h: a language model as the engine sees it: embedding, a stack of blocks that load one at a
// time, a head.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "calib/model_config.h"
#include "calib/weights.h"
#include "fisher/block.h"

namespace kvcal::calib {

/// The cache of one layer: what its codebook is laid out by.
struct LayerGeometry {
  int kv_heads = 0;
  int key_dim = 0;    ///< per head
  int value_dim = 0;  ///< per head
  std::string rope_json;
  std::int64_t window = 0;
};

/// A model over memory-mapped weights. Only what load_block() and load_head() return takes memory.
class Model {
 public:
  virtual ~Model() = default;
  [[nodiscard]] virtual const ModelConfig& config() const = 0;
  [[nodiscard]] virtual LayerGeometry geometry(int layer) const = 0;
  /// token ids, each in [0, vocab_size) -> [tokens, hidden_size] in the compute type.
  [[nodiscard]] virtual at::Tensor embed(std::span<const std::int32_t> tokens) const = 0;
  /// Throws InvalidInput naming the tensor that is missing, of another shape, or not finite.
  [[nodiscard]] virtual std::unique_ptr<fisher::Block> load_block(int layer) const = 0;
  [[nodiscard]] virtual std::unique_ptr<fisher::Head> load_head() const = 0;
  /// Every tensor that embed() reads.
  [[nodiscard]] virtual std::vector<TensorSpec> embedding_tensors() const = 0;
  /// Every tensor that load_block() reads; those of load_head() where layer = num_layers. For checking a
  /// checkpoint before any work, and for reading ahead.
  [[nodiscard]] virtual std::vector<TensorSpec> tensors(int layer) const = 0;
};

/// A family of models: how its config.json is read and its model made. calib/models/ holds one file for each.
struct Architecture {
  std::string name;        ///< as in config.json's "architectures"
  std::string model_type;  ///< as in config.json's "model_type", for files that lack the former
  ModelConfig (*read_config)(const ConfigReader& config);
  std::unique_ptr<Model> (*make_model)(const ModelConfig& config,
                                       std::shared_ptr<const WeightLoader> weights);
};

/// All known, in the order of their names.
[[nodiscard]] const std::vector<Architecture>& architectures();

/// Reads config.json of a folder. Throws InvalidInput: no config.json; an architecture that is not known
/// (with the list of those that are); a checkpoint whose weights are quantised (with the way to convert it).
[[nodiscard]] ModelConfig read_model_config(const std::filesystem::path& folder);

/// The model of a config and its weights, every tensor's presence, shape and type checked by the headers.
/// Throws InvalidInput naming file and tensor.
[[nodiscard]] std::unique_ptr<Model> load_model(const ModelConfig& config,
                                                std::shared_ptr<const WeightLoader> weights);

}  // namespace kvcal::calib
