#include "calib/calibrate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <future>

#include "base/error.h"
#include "base/file.h"
#include "calib/calibration_job.h"
#include "calib/passes.h"
#include "calib/sample_judgement.h"
#include "calib/work_folder.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Fits a layer on a thread of its own, while the passes go on; at most one at a time.
class FitInBackground {
 public:
  FitInBackground(const CalibrationJob& job, const WorkFolder& folder, Passes& passes)
      : job_(job), folder_(folder), passes_(passes) {}

  /// Waits for the fit before, then starts this one.
  void start(LayerCapture capture) {
    wait();
    layer_ = capture.layer;
    result_ = std::async(std::launch::async, [this, capture = std::move(capture)] {
      const Clock::time_point begin = Clock::now();
      formats::LayerCodebook fit =
          fit_layer(capture, job_.model->geometry(capture.layer), job_.fit_options());
      folder_.save_layer(job_.frame, fit);
      return std::pair{std::move(fit), seconds_since(begin)};
    });
  }

  /// Waits for the fit under way, if any, and keeps its result. Rethrows its error.
  void wait() {
    if (!result_.valid()) return;
    auto [fit, elapsed] = result_.get();
    seconds_ += elapsed;
    layers_.push_back(std::move(fit));
    passes_.layer_saved(layer_);
  }

  [[nodiscard]] double seconds() const { return seconds_; }
  /// Those fitted so far, in the order of their fits.
  [[nodiscard]] std::vector<formats::LayerCodebook> take_layers() { return std::move(layers_); }

 private:
  const CalibrationJob& job_;
  const WorkFolder& folder_;
  Passes& passes_;
  std::vector<formats::LayerCodebook> layers_;
  int layer_ = 0;
  double seconds_ = 0;
  std::future<std::pair<formats::LayerCodebook, double>> result_;
};

CalibrationPlan make_plan(const CalibrationJob& job) {
  CalibrationPlan plan;
  plan.model = job.frame.model;
  plan.calibration = job.frame.calibration;
  plan.model_folder = job.folder.path;
  plan.parameters = job.weights->parameters();
  plan.need = estimate_need(job);
  plan.work = job.options.work;
  return plan;
}

// Whether `out` holds the finished result of this very run. Throws where it holds anything else.
bool finished_before(const CalibrationJob& job, formats::Codebook& codebook) {
  const fs::path& out = job.options.out;
  if (!fs::exists(out)) return false;
  if (fs::is_directory(out)) {
    throw base::SystemError(base::concat("--out ", out.string(), " is a folder; name the file to write"));
  }
  std::string reason = "is not a kvcal codebook";
  try {
    codebook = formats::read_codebook(out);
    reason = identity_difference(codebook_identity(codebook), job.identity_json);
    if (reason.empty()) return true;
    reason = "is the result of another run: " + reason + " differ";
  } catch (const base::Error& error) {
    reason = base::concat("is not a whole codebook (", error.what(), ")");
  }
  if (job.options.overwrite) return false;
  throw base::SystemError(base::concat(out.string(), " exists and ", reason,
                                       "; name another file with --out, or give --overwrite"));
}

// Whether a file can be made beside `out`: tried, unless nothing may be written.
void check_writable(const fs::path& out, bool dry_run) {
  const fs::path folder = out.parent_path().empty() ? fs::path(".") : out.parent_path();
  if (!fs::is_directory(folder)) {
    throw base::SystemError(base::concat("cannot write ", out.string(), ": the folder ", folder.string(),
                                         " does not exist; make it first"));
  }
  if (dry_run) return;
  base::remove_temporaries(folder, out.filename().string());
  const fs::path probe = base::temporary_name(out);
  try {
    base::write_file_atomically(probe, std::string_view());
  } catch (const base::SystemError& error) {
    throw base::SystemError(base::concat("cannot write ", out.string(), " (", error.what(),
                                         "); name a file in a folder that can be written to with --out"));
  }
  fs::remove(probe);
}

// A run that was killed after it wrote its result left its work folder.
void remove_leftover(const CalibrationJob& job) {
  if (job.options.dry_run || !fs::is_directory(job.options.work)) return;
  try {
    WorkFolder(job.options.work, job.identity_json).remove_all();
  } catch (const base::Error&) {
    // Another run's, which is none of ours.
  }
}

/// The passes and fits from what the work folder holds to the finished codebook.
formats::Codebook run_passes(CalibrationJob& job, const WorkFolder& folder, std::int64_t cache_bytes,
                             base::Progress& progress, CalibrationReport& report) {
  Passes passes(job, folder, progress, cache_bytes);
  const Clock::time_point start = Clock::now();
  passes.forward();
  job.frame.calibration.loss = passes.head();
  report.forward_seconds = seconds_since(start);

  const Clock::time_point backward_start = Clock::now();
  const int layers = job.config.num_layers;
  progress.begin_stage("backward", job.windows.tokens() * layers, "tokens");
  formats::Codebook codebook = job.frame;
  FitInBackground fits(job, folder, passes);
  for (int layer = layers - 1; layer >= 0; --layer) {
    if (auto saved = folder.load_layer(layer)) {
      codebook.layers.push_back(std::move(*saved));
      passes.layer_saved(layer);
      continue;
    }
    fits.start(passes.backward_layer(layer));
  }
  fits.wait();
  progress.end_stage();
  report.backward_seconds = seconds_since(backward_start);
  report.fit_seconds = fits.seconds();
  for (formats::LayerCodebook& layer : fits.take_layers()) codebook.layers.push_back(std::move(layer));
  std::ranges::sort(codebook.layers, {}, &formats::LayerCodebook::index);
  return codebook;
}

void warn(CalibrationReport& report, base::Progress& progress, const std::vector<std::string>& warnings) {
  for (const std::string& warning : warnings) progress.warning(warning);
  report.warnings.insert(report.warnings.end(), warnings.begin(), warnings.end());
}

}  // namespace

CalibrationReport calibrate(const CalibrationOptions& options, base::Progress& progress,
                            PlanListener* listener) {
  const Clock::time_point start = Clock::now();
  CalibrationJob job = prepare_calibration(options, progress);
  at::set_num_threads(job.threads);
  CalibrationReport report;
  report.already_done = finished_before(job, report.codebook);
  report.plan = make_plan(job);
  progress.check_interrupted();
  if (report.already_done) {
    remove_leftover(job);
    return report;
  }
  report.plan.earlier = WorkFolder::state(report.plan.work, job.identity_json, job.config.num_layers);
  check_writable(job.options.out, job.options.dry_run);
  if (listener != nullptr) listener->on_plan(report.plan);
  warn(report, progress, job.warnings);
  if (job.options.dry_run) return report;

  const std::int64_t cache_bytes = check_need(report.plan.need, job);
  WorkFolder folder(job.options.work, job.identity_json);
  formats::Codebook codebook = run_passes(job, folder, cache_bytes, progress, report);
  warn(report, progress, judge_fits(codebook));
  warn(report, progress, judge_sample(codebook));
  formats::write_codebook(job.options.out, codebook);
  report.codebook = formats::read_codebook(job.options.out);
  folder.remove_all();
  report.seconds = seconds_since(start);
  return report;
}

}  // namespace kvcal::calib
