// kmeans/boundary_search.h: where the optimum cuts a sorted array of runs, found by zooming in on the cuts
// that can be optimal.
//
// Each round lays a few hundred positions over the windows still open for each cut, solves the dynamic
// program over those forwards and backwards with every position given a bonus, and closes all cells that no
// optimal cut can lie in; the next round lays its positions closer. The bonus bounds what a cut inside a cell
// can gain over one at its edges (docs/solver.md, with the proof), so each round also gives a lower bound on
// the optimum of the points behind the runs, cut anywhere.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "kmeans/run.h"

namespace kvcal::kmeans {

/// The runs [begin, end).
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// For each of the k - 1 cuts the stretches of runs, ascending,
/// that an optimal cut can lie in or at an end of.
using Windows = std::vector<std::vector<Range>>;

/// What is to be searched.
struct SearchOptions {
  double relative_gap = 0;  ///< stop once upper <= lower (1 + relative_gap)
  Mean smallest;            ///< no point behind the runs is less, in the units of the runs' means
  Mean largest;             ///< no point behind the runs is more
  double rounding = 0;      ///< bounds the relative error of any cost (docs/solver.md)
};

/// What is known of the optimum.
struct Bracket {
  /// [k - 1], ascending: cluster j is the runs [cuts[j - 1], cuts[j]), possibly none.
  std::vector<std::int64_t> cuts;
  double upper = std::numeric_limits<double>::infinity();  ///< the cost of those clusters
  double lower = 0;                                        ///< no clustering of the points costs less
  Windows windows;
  bool exact = false;  ///< the cuts are optimal: no cell that is open holds two different points
};

/// Windows that hold nothing back: every cut may lie anywhere in `size` runs.
[[nodiscard]] Windows open_windows(std::int64_t size, int clusters);

/// Narrows `known` (its upper bound, lower bound and windows hold on entry) until each open cell is one run,
/// or the gap is reached.
[[nodiscard]] Bracket search_boundaries(const RunTree& runs, const SearchOptions& options, Bracket known);

}  // namespace kvcal::kmeans
