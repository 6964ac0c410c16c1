// apps/codebook_view.h: a codebook, and the plan of a calibration, as people read them and as JSON.
#pragma once

#include <string>

#include "apps/json_output.h"
#include "calib/calibrate.h"
#include "formats/codebook.h"

namespace kvcal::apps {

/// Where the codebook comes from: model, text, options, fingerprints. Ends with a newline.
[[nodiscard]] std::string provenance_text(const formats::Codebook& codebook);

/// A table with a line for each tensor of each layer.
[[nodiscard]] std::string layers_text(const formats::Codebook& codebook);

/// All of one layer: thresholds in short, every datatype's centroids with and without Q-Norm.
[[nodiscard]] std::string layer_text(const formats::LayerCodebook& layer);

/// What will be done and what it needs.
[[nodiscard]] std::string plan_text(const calib::CalibrationPlan& plan);

/// Everything but the layers.
[[nodiscard]] Json provenance_json(const formats::Codebook& codebook);
/// {"layer", "kv_heads", ...,
///  "key": {"fisher_sum", "halves", "outliers": [{"fraction", "datatypes": [...]}]}, "value": {...}};
/// a tensor whose sizes do not stand at the layer holds "heads", "dim" and "thresholds" as well.
/// With `arrays` the thresholds, centroids and fisher_channel as well.
[[nodiscard]] Json layer_json(const formats::LayerCodebook& layer, bool arrays);
[[nodiscard]] Json plan_json(const calib::CalibrationPlan& plan);

}  // namespace kvcal::apps
