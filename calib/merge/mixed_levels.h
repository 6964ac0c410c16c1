// calib/merge/mixed_levels.h: one quantiser from those of several runs.
//
// A level is the mean of the numbers that take its code. So far as they keep their codes, the best level of two runs' numbers together
// is the mean of both levels, weighted by what lies at each; there the fit begins. It goes on as Lloyd's does, each number with the
// nearest level, where the runs' histograms have it. docs/merging.md.
#pragma once

#include <span>
#include <vector>

#include "calib/fit/thresholds.h"
#include "calib/merge/weight_spread.h"

namespace kvcal::calib {

/// How one run quantises a tensor.
struct RunLevels {
  std::vector<double> levels;  ///< [k], ascending: of channel c they lie at range * level + zero
  WeightSpread spread;  ///< of a channel's weight, in the units of the levels: taken to be alike in all
  std::vector<Normaliser> ranges;  ///< [channels]; of range 0: all of it comes back as zero
  std::vector<double> weights;     ///< [channels]: what a squared error of 1 in all of it costs
};

struct MixedLevels {
  std::vector<double> levels;      ///< [k], ascending
  std::vector<Normaliser> ranges;  ///< [channels]
  /// What the runs' numbers err more by these levels than by their own: by their spread, so about.
  double excess = 0;
};

/// Levels and ranges that leave the least error of all runs' numbers that alternating least squares finds. At least one run, all with
/// as many levels and channels. Throws InvalidInput where errors exceed double.
[[nodiscard]] MixedLevels mix_levels(std::span<const RunLevels> runs);
/// Levels alone, within -1 and 1, the ranges being given.
[[nodiscard]] MixedLevels mix_levels(std::span<const RunLevels> runs, std::vector<Normaliser> ranges);

}  // namespace kvcal::calib
