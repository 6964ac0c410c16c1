// calib/validation_job.h: a validation whose options are checked and whose inputs are open: what its runs start
// from.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "base/progress.h"
#include "calib/engine/session.h"
#include "calib/plan/resource_need.h"
#include "calib/text/passkey.h"
#include "calib/validate.h"
#include "calib/validate/comparison.h"

namespace kvcal::calib {

struct ValidationJob {
  ValidationOptions options;
  Session session;  ///< its windows are those of the text
  std::int64_t first_scored = 0;
  std::optional<formats::Codebook> codebook;
  std::vector<NamedMethod> methods;       ///< full precision first
  std::optional<PasskeyPrompts> passkey;  ///< where lengths were asked for

  [[nodiscard]] const formats::Codebook* codebook_or_null() const { return codebook ? &*codebook : nullptr; }
  [[nodiscard]] std::int64_t stored_methods() const { return static_cast<std::int64_t>(methods.size()) - 1; }
  [[nodiscard]] std::filesystem::path scratch_folder() const;
  [[nodiscard]] RunShape run_shape() const;
};

/// Checks the options against each other, the model and the codebook, reads headers and tokens. Writes nothing.
/// Throws as validate() does.
[[nodiscard]] ValidationJob prepare_validation(const ValidationOptions& options, base::Progress& progress);

/// What the job does and needs: the most of its runs, which come one after the other, and the time of all.
[[nodiscard]] ValidationPlan plan_validation(const ValidationJob& job);

}  // namespace kvcal::calib
