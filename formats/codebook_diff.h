// formats/codebook_diff.h: what changed between two codebooks.
//
// A magnitude is relative: |a - b| over the larger of |a| and |b|; of an array, the largest |a - b| of its
// elements over the largest number in it on either side.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "formats/codebook.h"

namespace kvcal::formats {

/// One side of a difference; monostate: absent there.
using DifferenceValue = std::variant<std::monostate, double, std::int64_t, std::string>;

/// The column of LayerDifference that a difference counts in.
enum class DifferenceColumn { none, key_thresholds, key_centroids, value_centroids };

/// One thing that differs.
struct Difference {
  /// As docs/codebook-format.md writes it. A dataset: "/layers/0003/key/outliers_0.01/nuq3/centroids"; an
  /// attribute: "/model@weights_sha256", ".../nuq3/centroids@qnorm_scale". A field of an attribute that holds
  /// JSON has its name behind: "/calibration@options/bits".
  std::string path;
  std::optional<std::int64_t> index = {};  ///< of an array: the element that differs most
  /// Of an array, that element. "present" for a group that the other side lacks, "8 values" for arrays of
  /// other sizes.
  DifferenceValue left = {}, right = {};
  /// Infinity where one is absent, not a number or not finite, and for a field of JSON.
  double magnitude = 0;
  std::optional<int> layer = {};  ///< empty: of the file, the model or the calibration
  DifferenceColumn column = DifferenceColumn::none;
};

/// All differences, provenance first, then layer by layer. `tolerance` is for measured numbers: those whose
/// magnitude is at most that count as the same. Text, integers (sizes, counts, seeds) and options are the
/// same or not. created_by is not compared.
[[nodiscard]] std::vector<Difference> diff_codebooks(const Codebook& left, const Codebook& right,
                                                     double tolerance = 0);

/// Whether two codebooks are of the same model.
struct ModelMatch {
  bool config = false;   ///< config_sha256, architecture, sizes, and the tensors of each layer that both have
  bool weights = false;  ///< weights_sha256

  [[nodiscard]] bool same() const { return config && weights; }
};

[[nodiscard]] ModelMatch match_models(const Codebook& left, const Codebook& right);

/// A layer that differs: the largest magnitude of each kind of array, over all fractions and bits. Empty
/// where no such array that both files have differs.
struct LayerDifference {
  int layer = 0;
  std::optional<double> key_thresholds = {}, key_centroids = {}, value_centroids = {};

  [[nodiscard]] std::optional<double> largest() const;
};

/// All layers that differ in anything, ascending.
[[nodiscard]] std::vector<LayerDifference> summarise_layers(std::span<const Difference> differences);

/// The one of the largest finite magnitude in any layer, the first of equals; null where there is none.
/// Numbers of the provenance do not count: a seed is not near another.
[[nodiscard]] const Difference* largest_difference(std::span<const Difference> differences);

}  // namespace kvcal::formats
