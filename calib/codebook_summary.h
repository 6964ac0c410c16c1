// calib/codebook_summary.h: what a codebook says before anyone evaluates it: the size of the cache, what it is estimated
// to cost and where, and whether its sample was enough (docs/method.md, "What a codebook says of its cost").
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "calib/fit/sample_judgement.h"
#include "formats/codebook.h"
#include "formats/datatype_choice.h"

namespace kvcal::calib {

/// The context at which caches are weighed.
inline constexpr std::int64_t kSummaryContext = 131072;

/// KL(model as it is || model with this tensor stored), the mean over tokens, in nats: half of the model's curvature
/// times the squared error, T / (2 N) sum F e^2 over a sample of N windows with T targets each. Outliers and sinks cost
/// nothing. Nothing where the fit did not weigh errors by F in the values' own units.
[[nodiscard]] std::optional<double> estimated_divergence(const formats::CalibrationInfo& calibration,
                                                         const formats::Datatype& datatype);

struct TensorEstimate {
  int layer = 0;
  std::string tensor;
  double share = 0;                  ///< of the weighted error that the method leaves in the model
  std::optional<double> divergence;  ///< as estimated_divergence()
};

struct MethodEstimate {
  formats::DatatypeChoice datatype;
  double bits_per_value = 0;
  std::int64_t cache_bytes = 0;      ///< of one sequence of kSummaryContext tokens
  std::optional<double> divergence;  ///< the sum over tensors, where all of them have one
  std::vector<TensorEstimate> tensors;

  /// The `count` tensors of the largest share, largest first.
  [[nodiscard]] std::vector<TensorEstimate> worst(std::size_t count) const;
};

/// Of what the codebook's recipe stores, at kSummaryContext.
struct RecipeEstimate {
  double bits_per_value = 0;
  std::int64_t cache_bytes = 0;
  double divergence = 0;  ///< as the recipe foretells it
};

struct CodebookSummary {
  std::int64_t exact_cache_bytes = 0;  ///< in 16 bits
  std::vector<MethodEstimate> methods;
  std::optional<RecipeEstimate> recipe;
  SampleDifference sample;
  std::vector<TensorDifference> sample_tensors;
  std::vector<SampleAdvice> advice;  ///< none: the sample was enough
};

/// The datatypes of 2 to 4 bits that every layer holds.
[[nodiscard]] CodebookSummary summarise(const formats::Codebook& codebook);

}  // namespace kvcal::calib
