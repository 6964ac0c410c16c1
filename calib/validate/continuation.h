// calib/validate/continuation.h: what a model itself would write after a text.
#pragma once

#include <cstdint>
#include <filesystem>

#include "base/progress.h"
#include "calib/engine/session.h"
#include "calib/text/text_sampler.h"

namespace kvcal::calib {

struct ContinuationOptions {
  std::int64_t tokens = 0;  ///< how many to write, at least 1
  int lanes = 1;            ///< windows side by side
  std::int64_t memory_bytes =
      0;  ///< for weights that stay, the caches and hidden states; the rest of the latter
  std::filesystem::path scratch;  ///< lies in a file in this folder
};

/// Each window with its last `tokens` tokens replaced by the model's own: greedy, at full precision, an end of
/// text or not. Every layer is loaded once for each token unless all of them fit in half of memory_bytes.
/// Throws InvalidInput where a value is not finite, naming layer and window; base::Error for a window that leaves
/// no prompt; SystemError; Interrupted.
[[nodiscard]] TokenWindows continue_windows(const Session& session, const TokenWindows& windows,
                                            const ContinuationOptions& options, base::Progress& progress);

/// What the caches and hidden states of that take.
[[nodiscard]] std::int64_t continuation_bytes(const Session& session, const TokenWindows& windows);

}  // namespace kvcal::calib
