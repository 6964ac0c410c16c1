// calib/validate/comparison.h: a model and the same model with its cache stored by each of several methods, side
// by side in one pass over the weights.
//
// What runs through the layers are variants: full precision; each method in all layers; and, where it is asked,
// each method in one tensor of one layer alone, which leaves the full-precision run at that layer. A layer is
// loaded once and every variant of every window goes through it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "calib/engine/session.h"
#include "calib/validate/cache_method.h"
#include "calib/validate/scores.h"
#include "calib/validate/storing_hook.h"

namespace kvcal::calib {

/// A method by its name; null: full precision.
struct NamedMethod {
  std::string name;
  std::unique_ptr<CacheMethod> method;
};

struct ComparisonOptions {
  /// [windows]: the first position of each whose logits are scored; those of the last predict nothing.
  std::vector<std::int64_t> first_scored = {};
  /// So many tokens at the end of each window are decoded: the prompt before them is stored as a whole, then one
  /// after the other reads the cache as it stands at its own step.
  std::int64_t decoded = 0;
  bool errors = true;       ///< what storing does to each tensor; `decoded` has none
  bool each_alone = false;  ///< what each tensor of each layer alone costs
  std::string stage = {};   ///< before the names of the stages that progress is told, where there are others
  int lanes = 1;            ///< windows side by side
  std::int64_t memory_bytes = 0;       ///< for hidden states; the others lie in a scratch file
  std::filesystem::path scratch = {};  ///< the folder of it
};

/// What storing one tensor of one layer does.
struct TensorCost {
  std::string name;
  formats::ThresholdScope thresholds = formats::ThresholdScope::channel;
  StorageError error;  ///< on the full-precision run's activations, all tokens of all windows
  double outlier_fraction = 0;
  std::optional<MethodScore> alone;  ///< when nothing else is stored
};

struct LayerCost {
  int layer = 0;
  std::vector<TensorCost> tensors;
};

struct MethodCost {
  std::string name;
  MethodScore score;
  std::vector<WindowScores> windows;   ///< what `score` is made of
  double perplexity_delta_stderr = 0;  ///< of the difference from full precision
  std::vector<LayerCost> layers;       ///< those with a cache; empty for full precision
  std::int64_t static_bytes = 0;       ///< of tables

  /// Bits stored for each number, tables apart. 0 where there is nothing stored.
  [[nodiscard]] double bits_per_value() const;
};

/// How many forwards of one layer and one window a comparison takes, in layers: what its time goes by.
[[nodiscard]] std::int64_t comparison_layers(const Session& session, std::int64_t methods, bool each_alone);
/// How many hidden states of a window exist together at most.
[[nodiscard]] std::int64_t comparison_states(const Session& session, std::int64_t methods, bool each_alone);

/// The costs of storing the caches of `windows`, in the order of `methods`. sensitivities: the codebook whose fisher_channel weighs errors, or null.
/// Throws InvalidInput naming method, layer and window where a value is not finite or cannot be stored;
/// SystemError; Interrupted.
[[nodiscard]] std::vector<MethodCost> compare(const Session& session, const TokenWindows& windows,
                                              const std::vector<NamedMethod>& methods,
                                              const formats::Codebook* sensitivities,
                                              const ComparisonOptions& options, base::Progress& progress);

}  // namespace kvcal::calib
