// calib/sample_judgement.h: was the sample enough? What the comparison of its halves says of the whole.
#pragma once

#include <string>
#include <vector>

#include "formats/codebook.h"

namespace kvcal::calib {

/// Above these the halves of the sample differ too much (docs/method.md, "Was the sample enough?"). First
/// choices, not yet fitted to what more samples change.
inline constexpr double kThresholdShiftLimit =
    0.10;  ///< mean over a layer's channels, in units of a channel's range
inline constexpr double kDatatypeExcessLimit = 0.05;  ///< relative objective

/// Warnings, each saying how many samples to try; none where the halves agree. Differences between samples
/// fall as one over the square root of their number, excess costs as one over it.
[[nodiscard]] std::vector<std::string> judge_sample(const formats::Codebook& codebook);

}  // namespace kvcal::calib
