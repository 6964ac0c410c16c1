// calib/calibration_job.h: a calibration whose options are checked and whose inputs are open: what the passes
// start from.
#pragma once

#include <string>
#include <vector>

#include "base/progress.h"
#include "calib/calibrate.h"
#include "calib/engine/session.h"
#include "calib/engine/work_folder.h"
#include "calib/fit/layer_fit.h"
#include "calib/plan/resource_need.h"

namespace kvcal::calib {

struct CalibrationJob {
  /// As asked, with `work`, `samples` and `seqlen` resolved. What `dtype` came to is session.placement's,
  /// what `bos` did is session.windows'.
  CalibrationOptions options;
  Session session;
  formats::Codebook frame;  ///< the codebook without layers and loss: where it comes from
  /// What makes two runs the same: fingerprints of model and tokens, and the options.
  std::string identity_json;
  std::vector<std::string> warnings;

  [[nodiscard]] FitOptions fit_options() const;
  [[nodiscard]] bool with_gradients() const { return options.sensitivity == Sensitivity::fisher; }
  [[nodiscard]] CheckpointShape checkpoint_shape() const;
  [[nodiscard]] RunShape run_shape() const;
};

/// Checks the options against each other and the model, reads headers and tokens. Writes nothing.
/// Throws as calibrate() does.
[[nodiscard]] CalibrationJob prepare_calibration(const CalibrationOptions& options, base::Progress& progress);

/// The identity of the run that a codebook came from: equal to CalibrationJob::identity_json of a run that
/// would make the same.
[[nodiscard]] std::string codebook_identity(const formats::Codebook& codebook);

}  // namespace kvcal::calib
