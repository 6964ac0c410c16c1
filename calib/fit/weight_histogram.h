// calib/fit/weight_histogram.h: where the weight lies that a datatype is fitted to.
#pragma once

#include <vector>

#include "kmeans/weighted_kmeans.h"

namespace kvcal::calib {

/// [formats::kHistogramBins] equal parts of [-1, 1]: the share of all weight whose points lie in each; a point
/// beyond the ends (by rounding) counts at the end. All zero where there is no weight. The same for any number of
/// threads.
[[nodiscard]] std::vector<float> weight_histogram(const kmeans::PointSource<double>& source, int threads);

}  // namespace kvcal::calib
