// calib/allocate.h: which datatype each tensor of a cache is stored by, under a budget of bytes (docs/allocation.md).
//
// What storing one tensor costs in divergence adds up over tensors well enough, so that the choice is a knapsack: an item for
// each tensor, an option for each datatype that the codebook holds of it (calib/allocate/knapsack.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "calib/codebook_summary.h"
#include "calib/validate.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// What `kvcal allocate` was asked to do; the fields are its options, with the same defaults.
struct AllocationOptions {
  std::filesystem::path codebook;
  std::filesystem::path out;  ///< where the codebook with its recipe goes; empty: in the place of `codebook`
  // One of both: the budget of one sequence of `context` tokens, tables apart.
  std::optional<double> bits_per_value;
  std::optional<std::int64_t> bytes;
  std::int64_t context = kSummaryContext;
  int min_bits = 2;              ///< of any tensor
  std::vector<int> keep_layers;  ///< stay in 16 bits
  bool paged = false;            ///< bytes are those of an engine's pages (docs/kernels.md)
  /// Where it names a model: each tensor's divergence is measured on its texts, not estimated from the file. Its codebook
  /// and methods are set here.
  ValidationOptions measured;
  bool measure_all =
      false;  ///< every datatype of each tensor; else one, by which the estimates of the others are scaled
};

/// What a tensor got, and of what.
struct TensorAllocation {
  formats::TensorRecipe recipe;
  std::string method;           ///< "nuq3-1%"; "fp": kept
  double bits_per_value = 0;    ///< with scales and outliers
  double least_bits = 0;        ///< the smallest option's bits per value, and
  double least_divergence = 0;  ///< what that would have cost
};

/// All tensors by one datatype, as the same source foretells it.
struct UniformAllocation {
  std::string method;
  std::int64_t bytes = 0;
  double bits_per_value = 0, divergence = 0;
};

struct Allocation {
  std::filesystem::path file;  ///< that holds it
  formats::Recipe recipe;
  std::int64_t budget_bytes = 0;
  double lower_bound = 0;  ///< what no choice within the budget goes below, by the same divergences
  std::vector<TensorAllocation> tensors;
  std::vector<UniformAllocation> uniform;  ///< those datatypes that every tensor may have, by bytes
  std::vector<std::string> warnings;
};

/// Chooses and writes: the codebook with its recipe, whole or not at all. Throws base::WrongUsage where no budget or two are
/// given, or a layer to keep that the codebook lacks; base::InvalidInput for a budget that not even the smallest choice meets,
/// saying how much that takes, for a codebook of a newer schema_minor, whose unknown parts a rewriting would lose, and
/// for one whose weights estimate no divergence where no model is named; what validate() throws.
[[nodiscard]] Allocation allocate(const AllocationOptions& options, base::Progress& progress,
                                  ValidationListener* listener = nullptr);

}  // namespace kvcal::calib
