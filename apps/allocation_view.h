// apps/allocation_view.h: what kvcal allocate chose, as text and as JSON.
#pragma once

#include <string>

#include "apps/json_output.h"
#include "calib/allocate.h"

namespace kvcal::apps {

/// all: also every tensor, not only how many got what.
[[nodiscard]] std::string allocation_text(const calib::Allocation& allocation, bool all);

[[nodiscard]] Json allocation_json(const calib::Allocation& allocation);

}  // namespace kvcal::apps
