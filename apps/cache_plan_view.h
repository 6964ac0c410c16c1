// apps/cache_plan_view.h: what a cache weighs and what fits, as people read it and as JSON.
#pragma once

#include <string>

#include "apps/json_output.h"
#include "calib/cache_plan.h"

namespace kvcal::apps {

/// A line for each method. Ends with a newline.
[[nodiscard]] std::string cache_plan_text(const calib::CachePlan& plan);

/// {"model", "layers", "kv_heads", "head_dim", "weights_bytes", "context", "batch", "gpus", "gpu_memory_bytes",
///  "methods": [{"name", "bits_per_value", "cache_bytes", "kvquant_bytes", "total_bytes_per_gpu", "fits",
///  "margin_bytes", "largest_context", ...}], ...} (docs/memory.md).
[[nodiscard]] Json cache_plan_json(const calib::CachePlan& plan);

}  // namespace kvcal::apps
