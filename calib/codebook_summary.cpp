#include "calib/codebook_summary.h"

#include <algorithm>
#include <functional>

#include "calib/cache_plan.h"
#include "calib/validate/method_names.h"

namespace kvcal::calib {
namespace {

MethodEstimate estimate(const formats::Codebook& codebook, const formats::DatatypeChoice& datatype,
                        const MethodSize& size) {
  MethodEstimate method{datatype, size.bits_per_value, size.cache_bytes, 0.0, {}};
  double error = 0;
  for (const formats::LayerCodebook& layer : codebook.layers) {
    for (const formats::TensorCodebook& tensor : layer.tensors) {
      const formats::ChosenDatatype chosen = formats::find_datatype(tensor.outliers, datatype);
      if (chosen.datatype == nullptr) {
        method.divergence.reset();
        continue;
      }
      const auto divergence = estimated_divergence(codebook.calibration, *chosen.datatype);
      error += chosen.datatype->objective;
      method.tensors.push_back({layer.index, tensor.tensor.name, chosen.datatype->objective, divergence});
      if (method.divergence && divergence)
        *method.divergence += *divergence;
      else
        method.divergence.reset();
    }
  }
  for (TensorEstimate& tensor : method.tensors) tensor.share = error > 0 ? tensor.share / error : 0;
  return method;
}

std::vector<SampleAdvice> advice_of(const formats::Codebook& codebook) {
  const formats::CalibrationInfo& calibration = codebook.calibration;
  std::vector<double> fractions;
  for (const formats::DatatypeChoice& datatype : formats::held_datatypes(codebook))
    if (std::ranges::find(fractions, datatype.fraction) == fractions.end())
      fractions.push_back(datatype.fraction);
  std::vector<SampleAdvice> advice = advise_by_size(calibration.samples, calibration.counted(), fractions);
  for (SampleAdvice& part : advise_by_halves(codebook)) advice.push_back(std::move(part));
  return advice;
}

}  // namespace

std::optional<double> estimated_divergence(const formats::CalibrationInfo& calibration,
                                           const formats::Datatype& datatype) {
  const bool counts_values = calibration.sensitivity == "fisher" && calibration.fisher_scale == "range" &&
                             datatype.weights == "fisher";
  if (!counts_values || calibration.samples < 1) return std::nullopt;
  const auto samples = static_cast<double>(calibration.samples);
  return calibration.targets() / (2 * samples) * datatype.objective;
}

std::vector<TensorEstimate> MethodEstimate::worst(std::size_t count) const {
  std::vector<TensorEstimate> sorted = tensors;
  std::ranges::stable_sort(sorted, std::ranges::greater(), &TensorEstimate::share);
  sorted.resize(std::min(sorted.size(), count));
  return sorted;
}

CodebookSummary summarise(const formats::Codebook& codebook) {
  CodebookSummary summary;
  const CacheShape shape = cache_shape(codebook);
  CachePlanOptions options;
  options.context = kSummaryContext;
  options.methods = {"fp"};
  for (const formats::DatatypeChoice& datatype : shape.datatypes) options.methods.push_back(datatype.name());
  if (codebook.recipe) options.methods.emplace_back(kRecipeMethod);
  const CachePlan plan = plan_cache({shape, {}}, options);
  summary.exact_cache_bytes = plan.methods.front().cache_bytes;
  for (std::size_t i = 0; i < shape.datatypes.size(); ++i)
    summary.methods.push_back(estimate(codebook, shape.datatypes[i], plan.methods[i + 1]));
  if (codebook.recipe) {
    const MethodSize& size = plan.methods.back();
    summary.recipe = {size.bits_per_value, size.cache_bytes, codebook.recipe->divergence};
  }
  summary.sample = sample_difference(codebook);
  summary.sample_tensors = tensor_differences(codebook);
  summary.advice = advice_of(codebook);
  return summary;
}

}  // namespace kvcal::calib
