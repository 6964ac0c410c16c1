// calib/sample_judgement.h: what a finished codebook says of the sample that it was fitted to.
#pragma once

#include <string>
#include <vector>

#include "formats/codebook.h"

namespace kvcal::calib {

/// Above these the halves of the sample differ too much: found by trial (docs/method.md, "Was the sample
/// enough?").
inline constexpr double kThresholdShiftLimit = 0.10;  ///< in units of a channel's range
inline constexpr double kDatatypeExcessLimit = 0.05;  ///< relative weighted error

/// The comparison of the sample's halves for the whole model: means over the layers' tensors, each weighted
/// by the error that its datatype leaves (the middle bits at the largest outlier fraction), so that a layer
/// counts by what it costs. 0 where no tensor has such an error.
struct SampleDifference {
  double threshold_shift = 0;  ///< of keys
  double datatype_excess = 0;  ///< of keys and values
};
[[nodiscard]] SampleDifference sample_difference(const formats::Codebook& codebook);

/// Warnings where the halves differ too much, each saying how many samples to try: differences of thresholds
/// fall as one over the square root of the number of samples, excess costs as one over it.
[[nodiscard]] std::vector<std::string> judge_sample(const formats::Codebook& codebook);

/// A warning for every fit that found all sensitivities zero.
[[nodiscard]] std::vector<std::string> judge_fits(const formats::Codebook& codebook);

}  // namespace kvcal::calib
