// calib/fit/sample_halves.h: how far fits on the two halves of the calibration sample differ.
#pragma once

#include "calib/engine/layer_capture.h"
#include "calib/fit/layer_fit.h"
#include "calib/fit/thresholds.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// How far the fits on the two halves of the sample (first and second half of the tokens) differ, at the
/// largest outlier fraction: the mean shift of a channel's thresholds in units of its range (0 where
/// thresholds are a token's), and by how much one half's datatype costs more on the other than that one's own
/// optimum. whole: the thresholds of all tokens at that fraction.
[[nodiscard]] formats::SampleAgreement compare_halves(const CapturedTensor& tensor, const Thresholds& whole,
                                                      const PairLayout& layout, const FitOptions& options);

}  // namespace kvcal::calib
