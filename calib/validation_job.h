// calib/validation_job.h: a validation whose options are checked and whose inputs are open: what its runs start
// from.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "base/progress.h"
#include "calib/engine/session.h"
#include "calib/plan/resource_need.h"
#include "calib/text/passkey.h"
#include "calib/validate.h"
#include "calib/validate/comparison.h"

namespace kvcal::calib {

/// What goes through the model, one after the other.
enum class ValidationRun {
  text,      ///< the windows, as a whole
  decoding,  ///< their beginnings, and what the model writes after them
  passkeys,  ///< prompts that hide a number
};

/// What a run needs.
struct RunNeed {
  ResourceNeed need;             ///< of its stages; what else is in memory:
  std::int64_t kept_bytes = 0;   ///< whatever the limit
  std::int64_t state_bytes = 0;  ///< hidden states and caches, as far as there is room

  [[nodiscard]] std::int64_t room_bytes() const;  ///< for states
  [[nodiscard]] std::int64_t memory_bytes() const;
};

struct ValidationJob {
  ValidationOptions options;
  Session session;  ///< its windows are those of the text
  std::int64_t first_scored = 0;
  std::unique_ptr<const formats::Codebook> codebook;  ///< null: none. Methods refer to it
  std::vector<NamedMethod> methods;                   ///< full precision first
  std::optional<PasskeyPrompts> passkey;              ///< where lengths were asked for

  [[nodiscard]] std::int64_t stored_methods() const { return static_cast<std::int64_t>(methods.size()) - 1; }
  [[nodiscard]] std::filesystem::path scratch_folder() const;
  [[nodiscard]] const TokenWindows& windows(ValidationRun run) const;
  [[nodiscard]] std::vector<ValidationRun> runs() const;  ///< those that were asked for
  [[nodiscard]] RunShape shape(ValidationRun run) const;
  [[nodiscard]] RunNeed need(ValidationRun run) const;
};

/// Checks the options against each other, the model and the codebook, reads headers and tokens. Writes nothing.
/// Throws as validate() does.
[[nodiscard]] ValidationJob prepare_validation(const ValidationOptions& options, base::Progress& progress);

/// What the job does and needs: the most memory and disk of its runs, and the time of all. needs: of job.runs().
[[nodiscard]] ValidationPlan plan_validation(const ValidationJob& job, const std::vector<RunNeed>& needs);

}  // namespace kvcal::calib
