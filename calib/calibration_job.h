// calib/calibration_job.h: a calibration whose options are checked and whose inputs are open: what the passes
// start from.
#pragma once

#include <memory>
#include <string>

#include "base/progress.h"
#include "calib/calibrate.h"
#include "calib/layer_fit.h"
#include "calib/model.h"
#include "calib/model_folder.h"
#include "calib/text_sampler.h"
#include "calib/work_folder.h"

namespace kvcal::calib {

struct CalibrationJob {
  CalibrationOptions options;  ///< as asked, with `work`, `samples` and `seqlen` resolved
  ModelFolder folder;
  ModelConfig config;
  std::shared_ptr<const WeightLoader> weights;
  std::unique_ptr<Model> model;
  TokenWindows windows;
  int threads = 1;
  formats::Codebook frame;  ///< the codebook without layers and loss: where it comes from
  std::string
      identity_json;  ///< what makes two runs the same: fingerprints of model and tokens, and the options
  std::vector<std::string> warnings;

  [[nodiscard]] FitOptions fit_options() const;
  [[nodiscard]] bool with_gradients() const { return options.sensitivity == "fisher"; }
  [[nodiscard]] CheckpointShape checkpoint_shape() const;
};

/// Checks the options against each other and the model, reads headers and tokens. Writes nothing.
/// Throws as calibrate() does.
[[nodiscard]] CalibrationJob prepare_calibration(const CalibrationOptions& options, base::Progress& progress);

/// The identity of the run that a codebook came from: equal to CalibrationJob::identity_json of a run that
/// would make the same.
[[nodiscard]] std::string codebook_identity(const formats::Codebook& codebook);

/// What is left of the job will need, as ResourceNeed says.
[[nodiscard]] ResourceNeed estimate_need(const CalibrationJob& job, const RemainingWork& left);

/// Throws SystemError where the limit or the disk is too small, saying how much is needed; WrongUsage where
/// --memory is more than the machine has.
void check_need(const ResourceNeed& need, const CalibrationJob& job);

/// The memory left for cached activations within the limit.
[[nodiscard]] std::int64_t cache_bytes(const ResourceNeed& need);

}  // namespace kvcal::calib
