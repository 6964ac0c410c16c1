#include "calib/fit/sample_judgement.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/error.h"

namespace kvcal::calib {
namespace {

std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f %%", share * 100);
  return text;
}

std::int64_t more_samples(std::int64_t samples, double factor) {
  // Rounding of the factor must not cost a sample.
  return static_cast<std::int64_t>(std::ceil(static_cast<double>(samples) * std::min(factor, 64.0) - 1e-6));
}

// What the datatype that the halves were compared with leaves; 0 where it was not fitted to sensitivities
// that other layers' can be added to.
double remaining_error(const formats::TensorCodebook& tensor) {
  if (tensor.outliers.empty() || tensor.outliers.back().datatypes.empty()) return 0;
  const auto& datatypes = tensor.outliers.back().datatypes;
  const formats::Datatype& middle = datatypes[datatypes.size() / 2];
  return middle.weights == "uniform" ? 0 : middle.objective;
}

// A token's thresholds are its own: they cannot differ between the halves.
bool has_thresholds(const formats::TensorCodebook& tensor) {
  return tensor.tensor.thresholds == formats::ThresholdScope::channel;
}

template <typename Visit>
void each_tensor(const formats::Codebook& codebook, const Visit& visit) {
  for (const formats::LayerCodebook& layer : codebook.layers)
    for (const formats::TensorCodebook& tensor : layer.tensors) visit(layer.index, tensor);
}

}  // namespace

std::vector<TensorDifference> tensor_differences(const formats::Codebook& codebook) {
  double all = 0, with_thresholds = 0;
  each_tensor(codebook, [&](int, const formats::TensorCodebook& tensor) {
    all += remaining_error(tensor);
    if (has_thresholds(tensor)) with_thresholds += remaining_error(tensor);
  });
  std::vector<TensorDifference> differences;
  each_tensor(codebook, [&](int layer, const formats::TensorCodebook& tensor) {
    SampleDifference share;
    const double error = remaining_error(tensor);
    if (has_thresholds(tensor) && with_thresholds > 0)
      share.threshold_shift = error / with_thresholds * tensor.halves.threshold_shift;
    if (all > 0) share.datatype_excess = error / all * tensor.halves.datatype_excess;
    differences.push_back({layer, tensor.tensor.name, share});
  });
  return differences;
}

SampleDifference sample_difference(const formats::Codebook& codebook) {
  SampleDifference sum;
  for (const TensorDifference& tensor : tensor_differences(codebook)) {
    sum.threshold_shift += tensor.share.threshold_shift;
    sum.datatype_excess += tensor.share.datatype_excess;
  }
  return sum;
}

std::vector<SampleAdvice> advise_by_size(std::int64_t samples, std::int64_t counted,
                                         const std::vector<double>& outliers) {
  constexpr double kFewest = 50;
  std::vector<SampleAdvice> advice;
  for (const double fraction : outliers) {
    const double beyond = fraction / 2 * static_cast<double>(counted);
    if (fraction == 0 || beyond >= kFewest) continue;
    const double tokens_per_sample = static_cast<double>(counted) / static_cast<double>(samples);
    advice.push_back(
        {base::concat("of outlier fraction ", fraction, " only ", static_cast<std::int64_t>(beyond),
                      " of a channel's values lie beyond each threshold, and fewer than 50 say "
                      "little"),
         static_cast<std::int64_t>(kFewest / (fraction / 2) / tokens_per_sample) + 1});
  }
  return advice;
}

std::vector<SampleAdvice> advise_by_halves(const formats::Codebook& codebook) {
  const SampleDifference difference = sample_difference(codebook);
  const std::int64_t samples = codebook.calibration.samples;
  std::vector<SampleAdvice> advice;
  if (difference.threshold_shift > kThresholdShiftLimit) {
    const double factor = std::pow(difference.threshold_shift / kThresholdShiftLimit, 2);
    advice.push_back(
        {base::concat("thresholds fitted to its two halves differ by ", percent(difference.threshold_shift),
                      " of a channel's range, and more than ", percent(kThresholdShiftLimit),
                      " costs quality"),
         more_samples(samples, factor)});
  }
  if (difference.datatype_excess > kDatatypeExcessLimit) {
    const double factor = difference.datatype_excess / kDatatypeExcessLimit;
    advice.push_back(
        {base::concat("datatypes fitted to one half of it leave ", percent(difference.datatype_excess),
                      " more error on the other than that one's own, and more than ",
                      percent(kDatatypeExcessLimit), " costs quality"),
         more_samples(samples, factor)});
  }
  return advice;
}

std::vector<std::string> sample_warning(const std::vector<SampleAdvice>& advice) {
  if (advice.empty()) return {};
  std::string reasons;
  std::int64_t samples = 0;
  for (const SampleAdvice& part : advice) {
    reasons += (reasons.empty() ? "" : "; ") + part.reason;
    samples = std::max(samples, part.samples);
  }
  return {base::concat("the sample is small: ", reasons, ": try --samples ", samples)};
}

std::vector<std::string> judge_fits(const formats::Codebook& codebook) {
  std::vector<std::string> warnings;
  for (const formats::LayerCodebook& layer : codebook.layers) {
    for (const formats::TensorCodebook& tensor : layer.tensors) {
      for (const formats::OutlierSet& set : tensor.outliers) {
        if (set.datatypes.empty() || set.datatypes.front().weights != "uniform") continue;
        warnings.push_back(base::concat("layer ", layer.index, ", ", tensor.tensor.name,
                                        "s, outlier fraction ", set.fraction,
                                        ": all sensitivities are zero; every element weighs the same"));
      }
    }
  }
  return warnings;
}

}  // namespace kvcal::calib
