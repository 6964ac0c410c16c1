#include "calib/sample_judgement.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/error.h"

namespace kvcal::calib {
namespace {

struct Worst {
  double value = 0;
  int layer = 0;
  const char* kind = "key";
};

std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f %%", share * 100);
  return text;
}

std::int64_t more_samples(std::int64_t samples, double factor) {
  return static_cast<std::int64_t>(std::ceil(static_cast<double>(samples) * std::min(factor, 64.0)));
}

}  // namespace

std::vector<std::string> judge_sample(const formats::Codebook& codebook) {
  Worst shift, excess;
  for (const formats::LayerCodebook& layer : codebook.layers) {
    for (const auto& [tensor, kind] : {std::pair{&layer.key, "keys"}, std::pair{&layer.value, "values"}}) {
      if (tensor->halves.threshold_shift > shift.value)
        shift = {tensor->halves.threshold_shift, layer.index, kind};
      if (tensor->halves.datatype_excess > excess.value)
        excess = {tensor->halves.datatype_excess, layer.index, kind};
    }
  }
  std::vector<std::string> warnings;
  const std::int64_t samples = codebook.calibration.samples;
  if (shift.value > kThresholdShiftLimit) {
    warnings.push_back(base::concat("thresholds fitted to the two halves of the sample differ by ",
                                    percent(shift.value), " of a channel's range (layer ", shift.layer, ", ",
                                    shift.kind, "; ", percent(kThresholdShiftLimit),
                                    " is usual); try --samples ",
                                    more_samples(samples, std::pow(shift.value / kThresholdShiftLimit, 2))));
  }
  if (excess.value > kDatatypeExcessLimit) {
    warnings.push_back(base::concat("the datatype fitted to one half of the sample costs ",
                                    percent(excess.value), " more on the other than its own (layer ",
                                    excess.layer, ", ", excess.kind, "; ", percent(kDatatypeExcessLimit),
                                    " is usual); try --samples ",
                                    more_samples(samples, excess.value / kDatatypeExcessLimit)));
  }
  return warnings;
}

}  // namespace kvcal::calib
