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
  /// For weights that stay, caches and hidden states. What it has no room for lies in a scratch file.
  std::int64_t memory_bytes = 0;
  std::filesystem::path scratch = {};  ///< the folder of that file
};

/// What a continuation holds beside one layer or the head at work.
struct ContinuationNeed {
  bool keeps_weights =
      false;  ///< all layers and the head stay loaded: half of memory_bytes has room for them
  std::int64_t weight_bytes = 0;  ///< of all layers and the head, whether they stay or not
  std::int64_t tail_bytes = 0;    ///< of what is cached of the tokens written: always in memory
  std::int64_t state_bytes = 0;   ///< of what is cached of the prompts, and hidden states

  /// In memory whatever its limit.
  [[nodiscard]] std::int64_t kept_bytes() const { return (keeps_weights ? weight_bytes : 0) + tail_bytes; }
};
[[nodiscard]] ContinuationNeed continuation_need(const Session& session, const TokenWindows& windows,
                                                 std::int64_t tokens, std::int64_t memory_bytes);

/// Each window with its last `tokens` tokens replaced by the model's own: greedy, at full precision, an end of
/// text or not. Every layer is loaded once for each token unless weights are kept.
/// Throws InvalidInput where a value is not finite, naming layer and window; base::Error for a window that leaves
/// no prompt; SystemError; Interrupted.
[[nodiscard]] TokenWindows continue_windows(const Session& session, const TokenWindows& windows,
                                            const ContinuationOptions& options, base::Progress& progress);

}  // namespace kvcal::calib
