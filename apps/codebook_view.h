// apps/codebook_view.h: a codebook, and the plan of a calibration, as people read them and as JSON.
#pragma once

#include <string>

#include "apps/json_output.h"
#include "calib/calibrate.h"
#include "calib/codebook_summary.h"
#include "formats/codebook.h"

namespace kvcal::apps {

/// What matters first: each method's bits, the size of the cache, what it is estimated to cost; whether the sample was
/// enough; the tensors that cost most. Ends with a newline, as all of these.
[[nodiscard]] std::string summary_text(const formats::Codebook& codebook,
                                       const calib::CodebookSummary& summary);

/// Where the codebook comes from: model, text, options, fingerprints; whole ones, or their first digits.
enum class Fingerprints { kShort, kWhole };
[[nodiscard]] std::string provenance_text(const formats::Codebook& codebook, Fingerprints fingerprints);

/// Tables with a line for each tensor of each layer: what it is estimated to cost by each method, and what it adds to
/// the difference between the sample's halves.
[[nodiscard]] std::string layers_text(const formats::Codebook& codebook,
                                      const calib::CodebookSummary& summary);

/// All of one layer: thresholds in short, every datatype's centroids with and without Q-Norm.
[[nodiscard]] std::string layer_text(const formats::LayerCodebook& layer);

/// What will be done and what it needs.
[[nodiscard]] std::string plan_text(const calib::CalibrationPlan& plan);

/// {"options", "source", "context", "bytes", "bits_per_value", "kl", "curve": [{"bits_per_value", "kl"}],
///  "tensors": [{"layer", "tensor", "bits", "outliers", "kl"}]}
[[nodiscard]] Json recipe_json(const formats::Recipe& recipe);
/// Everything but the layers.
[[nodiscard]] Json provenance_json(const formats::Codebook& codebook);
/// {"layer", "kv_heads", ...,
///  "key": {"fisher_sum", "halves", "outliers": [{"fraction", "datatypes": [...]}]}, "value": {...}};
/// a tensor whose sizes do not stand at the layer holds "heads", "dim" and "thresholds" as well.
/// With arrays the thresholds, centroids, fitted ranges, histograms and fisher_channel as well.
enum class Arrays {
  kNone,
  kNumbers,
  kPacked,  ///< as {"f4": base64 of little-endian float32}, without fitted ranges and with_sinks: for a page
};
[[nodiscard]] Json layer_json(const formats::LayerCodebook& layer, Arrays arrays);
/// {"methods": [{"name", "bits", "fraction", "bits_per_value", "cache_bytes", "context", "estimated_kld", "layers"}],
///  "recipe": null or {"bits_per_value", "cache_bytes", "kld"},
///  "sample": {"threshold_shift", "threshold_shift_limit", "datatype_excess", "datatype_excess_limit", "enough",
///  "advice"}}
[[nodiscard]] Json summary_json(const calib::CodebookSummary& summary);
[[nodiscard]] Json plan_json(const calib::CalibrationPlan& plan);

}  // namespace kvcal::apps
