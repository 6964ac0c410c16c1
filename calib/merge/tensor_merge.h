// calib/merge/tensor_merge.h: one tensor's codebook from those of several runs over other samples (docs/merging.md).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "formats/codebook.h"
#include "formats/datatype_choice.h"

namespace kvcal::calib {

/// What of a run's calibration bears on how its statistics count beside another's.
struct RunSample {
  std::int64_t counted = 0;  ///< tokens in its statistics
  std::int64_t tokens = 0;   ///< with the sinks
  /// To what its squared gradients are brought: they are of a window's mean loss, so that those of shorter windows are larger.
  double fisher_factor = 1;
};

/// How the runs were fitted.
struct MergeRules {
  bool range_weights = true;  ///< errors are in the values' own units (FisherScale::range)
};

/// What the runs' own datatypes leave, and about what the merged one leaves above that.
struct MergedError {
  formats::DatatypeChoice datatype;
  double own = 0, excess = 0;
};

/// How near a merged tensor comes to one of all samples together.
struct Nearness {
  /// Between the runs, of the largest outlier fraction: how far a channel's thresholds lie apart, the end at which they do more, in
  /// units of its range, half their distance. What the merged ones can be off at most. 0 where thresholds are a token's.
  double threshold_spread = 0;      ///< mean over the channels
  double widest_spread = 0;         ///< the largest, and
  std::int64_t widest_channel = 0;  ///< whose it is
  std::vector<MergedError> errors;  ///< by fraction and bits
};

struct MergedTensor {
  formats::TensorCodebook codebook;
  Nearness nearness;
};

/// What a run's codebook lacks, or has wrong, for being merged; empty: nothing.
[[nodiscard]] std::string merge_obstacle(const formats::TensorCodebook& run);
/// Why the other can't be merged with the first; empty where it can. Both are of one tensor.
[[nodiscard]] std::string merge_difference(const formats::TensorCodebook& first,
                                           const formats::TensorCodebook& other);

/// runs: at least one, which have no obstacle and don't differ, with a sample for each. Exact are fisher_channel, thresholds of fraction 0, and the
/// largest magnitudes; the others are as near as docs/merging.md says. lower_bound is 0: nothing is proven of the datatypes.
/// Throws InvalidInput naming the channel whose merged thresholds give a scale or zero beyond fp16.
[[nodiscard]] MergedTensor merge_tensors(std::span<const formats::TensorCodebook* const> runs,
                                         std::span<const RunSample> samples, const MergeRules& rules);

}  // namespace kvcal::calib
