#include "calib/calibrate.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <numeric>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/new_file.h"
#include "calib/calibration_job.h"
#include "calib/engine/capturer.h"
#include "calib/engine/fit_queue.h"
#include "calib/engine/passes.h"
#include "calib/engine/work_folder.h"
#include "calib/fit/sample_judgement.h"
#include "calib/plan/libtorch_threads.h"
#include "calib/plan/tensor_memory.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Each damaged file, why, and what making it again costs beside what is left anyway.
std::vector<std::string> describe_damage(const Checkpoints& found, const RemainingWork& left) {
  std::vector<std::string> texts;
  for (const DamagedCheckpoint& damage : found.damaged) {
    texts.push_back(base::concat("the checkpoint ", damage.what(),
                                 "; it is made again from what is still there: left to do are ",
                                 left.text()));
  }
  return texts;
}

CalibrationPlan make_plan(const CalibrationJob& job, const Checkpoints& found) {
  CalibrationPlan plan;
  plan.model = job.frame.model;
  plan.calibration = job.frame.calibration;
  plan.model_folder = job.session.folder.path;
  plan.parameters = job.session.weights->parameters();
  plan.left = remaining_work(found, job.with_gradients());
  plan.need = estimate_need(job.run_shape(), plan.left);
  plan.work = job.options.work;
  plan.layers_fitted = found.layers_fitted();
  plan.goes_on =
      found.bytes > 0 && found.layers > 0 &&
      (found.losses || plan.layers_fitted > 0 || std::ranges::find(found.hidden, true) != found.hidden.end());
  plan.damaged = describe_damage(found, plan.left);
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
  const fs::path target = base::behind_links(out);
  const fs::path folder = target.parent_path().empty() ? fs::path(".") : target.parent_path();
  if (!fs::is_directory(folder)) {
    throw base::SystemError(base::concat("cannot write ", out.string(), ": the folder ", folder.string(),
                                         " does not exist; make it first"));
  }
  if (dry_run) {
    if (::access(folder.c_str(), W_OK | X_OK) != 0) base::throw_system_error("write into", folder, errno);
    return;
  }
  base::remove_unfinished(folder, target.filename().string());
  try {
    const base::NewFile probe(target);
  } catch (const base::SystemError& error) {
    throw base::SystemError(
        base::concat(error.what(), "; name a file in a folder that can be written to with --out"));
  }
}

// What the user gave, or gets, must not be what the run writes or removes.
void check_places(const CalibrationJob& job) {
  const CalibrationOptions& options = job.options;
  if (base::lies_in(options.out, options.work)) {
    throw base::WrongUsage(base::concat("--out ", options.out.string(), " lies in the work folder ",
                                        options.work.string(), "; name a file or a --work elsewhere"));
  }
  std::vector<fs::path> inputs = options.texts;
  if (!options.tokens.empty()) inputs.push_back(options.tokens);
  for (const fs::path& input : inputs) {
    if (!base::lies_in(options.out, input)) continue;
    throw base::WrongUsage(base::concat("--out ", options.out.string(), " is the calibration text ",
                                        input.string(), "; name another file"));
  }
  for (const auto& [option, path] : {std::pair{"--out", options.out}, std::pair{"--work", options.work}}) {
    if (!base::lies_in(path, job.session.folder.path)) continue;
    throw base::WrongUsage(base::concat(option, " ", path.string(), " lies in the model's folder ",
                                        job.session.folder.path.string(), "; name a place elsewhere"));
  }
}

// Not over what another run has made under that name meanwhile.
void write_result(const CalibrationJob& job, const formats::Codebook& codebook) {
  formats::Codebook there;
  try {
    if (finished_before(job, there)) return;
  } catch (const base::SystemError& error) {
    throw base::SystemError(base::concat(error.what(), "; with --work ", job.options.work.string(),
                                         " it only has to be written"));
  }
  formats::write_codebook(base::behind_links(job.options.out), codebook);
}

// A run that was killed after it wrote its result left its work folder.
void remove_leftover(const CalibrationJob& job) {
  if (job.options.dry_run) return;
  const fs::path target = base::behind_links(job.options.out);
  base::remove_unfinished(target.parent_path().empty() ? fs::path(".") : target.parent_path(),
                          target.filename().string());
  if (!fs::is_directory(job.options.work)) return;
  try {
    WorkFolder(job.options.work, job.identity_json).finish();
  } catch (const std::exception&) {
    // Another run's, or out of reach: none of ours.
  }
}

/// What is left of the passes and fits, from what the work folder holds to the finished codebook.
formats::Codebook run_passes(CalibrationJob& job, const WorkFolder& folder, Checkpoints found,
                             const ResourceNeed& need, base::Progress& progress, CalibrationReport& report) {
  const RemainingWork left = remaining_work(found, job.with_gradients());
  TensorMemory::set_limit(need.memory_limit_bytes - need.base_bytes);
  Passes passes(
      job.session, folder, progress, left,
      {.with_gradients = job.with_gradients(), .lanes = need.lanes, .cache_bytes = cache_bytes(need)});
  const Clock::time_point start = Clock::now();
  passes.forward();
  if (left.head) found.losses = passes.head();
  const std::vector<double>& losses = *found.losses;
  job.frame.calibration.loss =
      std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
  report.forward_seconds += seconds_since(start);

  const Clock::time_point backward_start = Clock::now();
  formats::Codebook codebook = job.frame;
  for (auto& fit : found.fits) {
    if (fit) codebook.layers.push_back(std::move(*fit));
  }
  TensorMemory::set_limit(need.memory_limit_bytes - need.base_bytes - need.beside_tensors_bytes);
  FitQueue fits(
      [&](LayerCapture capture, int threads) {
        FitOptions options = job.fit_options();
        options.threads = threads;
        const auto index = static_cast<std::size_t>(capture.layer);
        formats::LayerCodebook fit =
            fit_layer(std::move(capture), job.session.config().layers[index], options);
        folder.save_layer(job.frame, fit);
        return fit;
      },
      [&](int layer) { passes.layer_done(layer); }, job.session.placement.threads);
  Capturer capturer(job.session, {.sinks = job.options.sinks, .with_gradients = job.with_gradients()},
                    left.last_visited(), fits);
  passes.backward(capturer);
  fits.wait();
  passes.end_backward();
  report.backward_seconds += seconds_since(backward_start);
  report.fit_seconds += fits.seconds();
  for (formats::LayerCodebook& layer : fits.take_layers()) codebook.layers.push_back(std::move(layer));
  std::ranges::sort(codebook.layers, {}, &formats::LayerCodebook::index);
  return codebook;
}

std::vector<SampleAdvice> size_advice(const CalibrationJob& job) {
  const std::int64_t counted = job.session.windows.tokens() - job.session.windows.samples * job.options.sinks;
  return advise_by_size(job.session.windows.samples, counted, job.options.outliers);
}

void warn(CalibrationReport& report, base::Progress& progress, const std::vector<std::string>& warnings) {
  for (const std::string& warning : warnings) progress.warning(warning);
  report.warnings.insert(report.warnings.end(), warnings.begin(), warnings.end());
}

/// Runs the passes; a checkpoint that turns out damaged is removed, and they go on from what is still there.
formats::Codebook run_to_the_end(CalibrationJob& job, const WorkFolder& folder, base::Progress& progress,
                                 CalibrationReport& report) {
  std::vector<DamagedCheckpoint> known;
  std::set<fs::path> damaged_before;
  ResourceNeed need = report.plan.need;
  for (;;) {
    Checkpoints found = WorkFolder::find(folder.path(), job.identity_json, job.checkpoint_shape(), known);
    const RemainingWork left = remaining_work(found, job.with_gradients());
    warn(report, progress, describe_damage(found, left));
    if (!known.empty()) {
      // Another work than was planned.
      need = estimate_need(job.run_shape(), left);
      check_need(need, job.run_shape());
    }
    for (const DamagedCheckpoint& damage : found.damaged) folder.remove(damage);
    known.clear();
    try {
      return run_passes(job, folder, std::move(found), need, progress, report);
    } catch (const DamagedCheckpoint& damage) {
      if (!damaged_before.insert(damage.file()).second) {
        throw base::SystemError(base::concat(
            "the checkpoint ", damage.what(),
            ", again after it was made anew; is the disk failing? Name a folder on another with --work"));
      }
      known.push_back(damage);
    }
  }
}

// Of a run that is done: nothing is left.
Checkpoints all_done(const formats::Codebook& codebook, const CheckpointShape& shape) {
  Checkpoints found(shape.layers);
  found.cached = shape.cached;
  for (const formats::LayerCodebook& layer : codebook.layers)
    found.fits.at(static_cast<std::size_t>(layer.index)) = layer;
  found.losses.emplace();
  return found;
}

CalibrationReport run_calibration(const CalibrationOptions& options, base::Progress& progress,
                                  PlanListener* listener) {
  const Clock::time_point start = Clock::now();
  const KeptLibtorchThreads of_the_host;
  const TensorMemory memory;
  CalibrationJob job = prepare_calibration(options, progress);
  check_places(job);
  at::set_num_threads(job.session.placement.threads);
  CalibrationReport report;
  report.already_done = finished_before(job, report.codebook);
  const CheckpointShape shape = job.checkpoint_shape();
  progress.check_interrupted();
  if (report.already_done) {
    report.plan = make_plan(job, all_done(report.codebook, shape));
    remove_leftover(job);
    return report;
  }
  WorkFolder::check_free(job.options.work);
  report.plan = make_plan(job, WorkFolder::find(job.options.work, job.identity_json, shape));
  check_writable(job.options.out, job.options.dry_run);
  if (listener != nullptr) listener->on_plan(report.plan);
  warn(report, progress, job.warnings);
  // A run says it once, at its end, with what it then knows.
  if (job.options.dry_run) warn(report, progress, sample_warning(size_advice(job)));
  check_need(report.plan.need, job.run_shape());
  if (job.options.dry_run) return report;

  WorkFolder folder(job.options.work, job.identity_json);
  formats::Codebook codebook = run_to_the_end(job, folder, progress, report);
  warn(report, progress, judge_fits(codebook));
  std::vector<SampleAdvice> advice = size_advice(job);
  for (SampleAdvice& part : advise_by_halves(codebook)) advice.push_back(std::move(part));
  warn(report, progress, sample_warning(advice));
  write_result(job, codebook);
  report.codebook = formats::read_codebook(job.options.out);
  folder.finish();
  report.seconds = seconds_since(start);
  return report;
}

}  // namespace

CalibrationReport calibrate(const CalibrationOptions& options, base::Progress& progress,
                            PlanListener* listener) {
  try {
    return run_calibration(options, progress, listener);
  } catch (const fs::filesystem_error& error) {
    throw base::SystemError(
        base::concat("cannot look at ", error.path1().string(), ": ", error.code().message()));
  }
}

}  // namespace kvcal::calib
