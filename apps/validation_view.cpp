// What both halves of validation_view.h stand on: which methods a user accepts.
#include "apps/validation_view.h"

#include "calib/validate/method_names.h"

namespace kvcal::apps {

bool ValidationLimits::met_by(const calib::MethodReport& method) const {
  return (!max_kld || method.score.divergence_mean <= *max_kld) &&
         (!max_ppl_delta || method.perplexity_delta <= *max_ppl_delta);
}

const calib::MethodReport* smallest_within(const calib::ValidationReport& report,
                                           const ValidationLimits& limits) {
  const calib::MethodReport* smallest = nullptr;
  for (const calib::MethodReport& method : report.methods) {
    if (method.name == calib::kFullPrecision || !limits.met_by(method)) continue;
    if (smallest == nullptr || method.bits_per_value < smallest->bits_per_value) smallest = &method;
  }
  return smallest;
}

}  // namespace kvcal::apps
