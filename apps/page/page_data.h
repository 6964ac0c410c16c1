// apps/page/page_data.h: the JSON that a page is drawn from.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "apps/json_output.h"
#include "calib/cache_plan.h"
#include "formats/codebook.h"

namespace kvcal::apps {

/// Of each GPU, where a page was asked for by a command that has no --gpu-memory.
inline constexpr std::int64_t kPageGpuMemory = std::int64_t{80} << 30;

/// Most numbers of channels (thresholds, sensitivities) that a page keeps one by one: 4.5 MB of it.
inline constexpr std::int64_t kMostPageNumbers = 850000;

/// `inspect --json` with its arrays as base64. Of a very large model, neighbouring channels of a head share an entry of
/// "lower" (the least), "upper" (the greatest) and "fisher_channel" (the sum): "channels_per_column" of them.
[[nodiscard]] Json page_codebook(const formats::Codebook& codebook);

/// `plan --json` for contexts from 8K to 1M, and for that of the options.
[[nodiscard]] Json page_plans(const calib::CacheModel& model, const calib::CachePlanOptions& options);

/// The cache of a codebook on GPUs of kPageGpuMemory. model: as for --model, for the size of the weights; "": not known.
[[nodiscard]] Json page_plans(const formats::Codebook& codebook, const std::string& model);

}  // namespace kvcal::apps
