// apps/validation_view.h: what a validation found, as people read it and as JSON.
#pragma once

#include <optional>
#include <string>

#include "apps/json_output.h"
#include "calib/validate.h"

namespace kvcal::apps {

/// What a user will accept; a method that misses either is out.
struct ValidationLimits {
  std::optional<double> max_kld;        ///< of the mean divergence
  std::optional<double> max_ppl_delta;  ///< of the perplexity's difference

  [[nodiscard]] bool any() const { return max_kld || max_ppl_delta; }
  [[nodiscard]] bool met_by(const calib::MethodReport& method) const;
};

/// The method within the limits that takes fewest bits, full precision apart; null where there is none.
[[nodiscard]] const calib::MethodReport* smallest_within(const calib::ValidationReport& report,
                                                         const ValidationLimits& limits);

/// What will be done and what it needs, in kColumns columns (terminal.h). Ends with a newline.
[[nodiscard]] std::string plan_text(const calib::ValidationPlan& plan);
/// Two tables with a line for each method, what their columns are, the weakest layers; in kColumns columns,
/// but for names of methods and models that are longer than most.
[[nodiscard]] std::string report_text(const calib::ValidationReport& report, const ValidationLimits& limits);
/// {"model", "codebook", "windows", "seqlen", "tokens", "protocol", "bos", "methods": [...]} and more
/// (docs/validation.md).
[[nodiscard]] Json report_json(const calib::ValidationReport& report, const ValidationLimits& limits);

}  // namespace kvcal::apps
