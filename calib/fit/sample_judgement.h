// calib/fit/sample_judgement.h: what a finished codebook says of the sample that it was fitted to.
#pragma once

#include <cstdint>
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

/// What one tensor adds to the model's difference: a tensor that hardly errs adds hardly anything, however much its
/// own halves differ.
struct TensorDifference {
  int layer = 0;
  std::string tensor;
  SampleDifference share;
};
/// Of every tensor, in the file's order; they add up to sample_difference().
[[nodiscard]] std::vector<TensorDifference> tensor_differences(const formats::Codebook& codebook);

/// Why a sample is small, and how many samples would do.
struct SampleAdvice {
  std::string reason;
  std::int64_t samples = 0;
};

/// By its size alone, before any work: fewer than 50 of a channel's values beyond a threshold say little of
/// where it should lie. counted: tokens in the statistics.
[[nodiscard]] std::vector<SampleAdvice> advise_by_size(std::int64_t samples, std::int64_t counted,
                                                       const std::vector<double>& outliers);

/// Where the halves of the finished sample differ too much: differences of thresholds fall as one over the
/// square root of the number of samples, excess costs as one over it.
[[nodiscard]] std::vector<SampleAdvice> advise_by_halves(const formats::Codebook& codebook);

/// All of it as one warning with one number, the largest; none where there is no advice.
[[nodiscard]] std::vector<std::string> sample_warning(const std::vector<SampleAdvice>& advice);

/// A warning for every fit that found all sensitivities zero.
[[nodiscard]] std::vector<std::string> judge_fits(const formats::Codebook& codebook);

}  // namespace kvcal::calib
