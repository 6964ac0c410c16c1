// calib/merge/mixed_magnitudes.h: how large a tensor's numbers are, over several samples together.
#pragma once

#include <cstdint>
#include <span>

#include "formats/codebook.h"

namespace kvcal::calib {

struct RunMagnitudes {
  const formats::TensorMagnitudes& magnitudes;
  std::span<const double> sensitivity;  ///< [channels]
  std::int64_t tokens = 0;              ///< that the magnitudes are of
};

/// The largest are exact. Other quantiles lie between those of the runs (mixed_quantile.h; numbers are taken to be negative as often as not), best
/// thresholds are means by sensitivity. At least one run; rotated and envelope are given in all or in none.
[[nodiscard]] formats::TensorMagnitudes mix_magnitudes(std::span<const RunMagnitudes> runs, int heads);

}  // namespace kvcal::calib
