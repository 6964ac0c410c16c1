// calib/validate/method_score.h: what a method costs, in numbers for people.
#pragma once

#include <cstdint>

namespace kvcal::calib {

/// A method over all windows. Standard errors are those of the mean over windows: what another text of the same
/// kind would move it by; 0 where there is one window.
struct MethodScore {
  double perplexity = 0, perplexity_stderr = 0;
  double divergence_mean = 0, divergence_stderr = 0;
  double divergence_p99 = 0;  ///< the 99th percentile over positions, linear interpolation
  double top1_agreement = 0;  ///< share of positions
  std::int64_t positions = 0;
};

}  // namespace kvcal::calib
