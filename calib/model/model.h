// calib/model/model.h: a language model as the engine sees it: embedding, a stack of blocks that load one
// at a time, a head.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "calib/model/model_config.h"
#include "calib/model/weights.h"
#include "fisher/block.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// A model over memory-mapped weights. Only what load_block() and load_head() return takes memory.
class Model {
 public:
  virtual ~Model() = default;
  [[nodiscard]] virtual const ModelConfig& config() const = 0;
  /// What a layer caches, in the order in which its block shows it (fisher::CacheHook); empty: the layer has
  /// no cache of its own.
  [[nodiscard]] virtual std::vector<formats::CachedTensor> cache(int layer) const = 0;
  /// token ids, each in [0, vocab_size) -> [tokens, hidden_size] in the compute type, on the compute device.
  [[nodiscard]] virtual at::Tensor embed(std::span<const std::int32_t> tokens) const = 0;
  /// Throws InvalidInput naming the tensor that is missing, of another shape, or not finite.
  [[nodiscard]] virtual std::unique_ptr<fisher::Block> load_block(int layer) const = 0;
  [[nodiscard]] virtual std::unique_ptr<fisher::Head> load_head() const = 0;

  // Every tensor that embed(), load_block() or load_head() reads: for checking a checkpoint before any work,
  // and for reading ahead.
  [[nodiscard]] virtual std::vector<TensorSpec> embedding_weights() const = 0;
  [[nodiscard]] virtual std::vector<TensorSpec> block_weights(int layer) const = 0;
  [[nodiscard]] virtual std::vector<TensorSpec> head_weights() const = 0;
};

/// A config.json that was read: what it says, and how the model is made of weights. What only the family
/// knows of it, make() holds.
struct ModelDefinition {
  ModelConfig config;
  /// Null: the layout alone, as config.json has it: cache() and the names and shapes of tensors; base::Error where a
  /// tensor is to be loaded.
  std::function<std::unique_ptr<Model>(std::shared_ptr<const WeightLoader>)> make;
};

/// A family of models: how its config.json is read. calib/model/families/ holds one file for each.
struct Architecture {
  std::string name;        ///< as in config.json's "architectures"
  std::string model_type;  ///< as in config.json's "model_type", for files that lack the former
  ModelDefinition (*read)(const ConfigReader& config);
};

/// All known, in the order of their names.
[[nodiscard]] const std::vector<Architecture>& architectures();

/// Reads a folder's config.json. Throws InvalidInput: no config.json; an architecture that is not known
/// (with the list of those that are); a checkpoint whose weights are quantised (with the way to convert it).
[[nodiscard]] ModelDefinition read_model_definition(const std::filesystem::path& folder);

/// Of a config.json alone, and whether the weights beside it are quantised: then their size is not the config's to
/// tell. Throws InvalidInput as read_model_definition(), but for such weights.
struct ModelLayout {
  ModelDefinition definition;
  bool quantised_weights = false;
};
[[nodiscard]] ModelLayout read_model_layout(const std::filesystem::path& config_file);

/// The model of a definition and its weights, every tensor's presence, shape and type checked by the headers.
/// Throws InvalidInput naming file and tensor.
[[nodiscard]] std::unique_ptr<Model> load_model(const ModelDefinition& definition,
                                                std::shared_ptr<const WeightLoader> weights);

}  // namespace kvcal::calib
