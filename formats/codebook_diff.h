// formats/codebook_diff.h: what changed between two codebooks.
#pragma once

#include <string>
#include <vector>

#include "formats/codebook.h"

namespace kvcal::formats {

/// One thing that differs: a field of the provenance, a size or a dataset, by its path in the file.
struct Difference {
  std::string path;         ///< "/model/weights_sha256", "/layers/0003/key/outliers_0.01/nuq3/centroids"
  std::string left, right;  ///< the two values in short, or "absent"
  /// Largest |a - b| over the largest |a|, |b|; infinity where one is absent or not a number.
  double magnitude = 0;
};

/// All differences whose magnitude is above `tolerance`, provenance first, then layer by layer.
/// created_by is not compared.
[[nodiscard]] std::vector<Difference> diff_codebooks(const Codebook& left, const Codebook& right,
                                                     double tolerance = 0);

}  // namespace kvcal::formats
