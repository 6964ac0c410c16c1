// calib/cache_shape.h: what a model caches, known from its config.json or a codebook, and how large its weights are.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "formats/codebook.h"
#include "formats/datatype_choice.h"

namespace kvcal::calib {

/// What a layer keeps of each token.
struct CachedLayer {
  std::vector<formats::CachedTensor> tensors;
  std::int64_t window = 0;  ///< of sliding-window attention: so many tokens are kept at most; 0: all

  /// Of each tensor, where a recipe says how it is stored; bits of formats::kKeptBits: as it is.
  std::vector<formats::DatatypeChoice> recipe = {};

  bool operator==(const CachedLayer&) const = default;
};

/// Of a number that is kept as it is.
inline constexpr std::int64_t kHalfBytes = 2;

/// Tokens that are held of a context. window: 0 for all.
[[nodiscard]] std::int64_t kept_tokens(std::int64_t window, std::int64_t context);

/// A model's cache, without a number in it.
struct CacheShape {
  std::string model, architecture;
  std::vector<CachedLayer> layers;
  std::int64_t max_positions = 0;  ///< the longest context it was trained for; 0: not known
  int sinks = 1;
  bool values_per_head = false;  ///< thresholds of values are found for each kv head of a token
  std::vector<formats::DatatypeChoice> datatypes;  ///< whose methods are weighed by default
};

struct WeightsSize {
  std::optional<std::int64_t> parameters;
  std::optional<std::int64_t> bytes;  ///< nothing: not known
  std::string dtype;                  ///< "bfloat16"; "" where bytes were given, or are not known
  std::string source;                 ///< "config", "option" or "unknown"
};

struct CacheModel {
  CacheShape cache;
  WeightsSize weights;
};

/// model: a folder, a config.json, or a name in the local Hugging Face cache; only config.json is read. Weights count as
/// held in its torch_dtype: float32 ones as float16, as servers load them; quantised ones are of unknown size.
/// Throws as find_model_folder() and read_model_layout().
[[nodiscard]] CacheModel read_cache_model(const std::string& model);

/// A codebook's own, with its sinks, value scope, datatypes and recipe.
[[nodiscard]] CacheShape cache_shape(const formats::Codebook& codebook);

}  // namespace kvcal::calib
