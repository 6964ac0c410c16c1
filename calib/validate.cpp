#include "calib/validate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "calib/merge.h"
#include "calib/plan/libtorch_threads.h"
#include "calib/plan/machine.h"
#include "calib/plan/tensor_memory.h"
#include "calib/validate/continuation.h"
#include "calib/validation_job.h"

namespace kvcal::calib {
namespace {

using Clock = std::chrono::steady_clock;

// Outliers beyond so many times their nominal share: the text is not what was calibrated on.
constexpr double kDrift = 2;

double ratio(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

TensorReport report_tensor(const TensorCost& cost) {
  TensorReport report;
  const StorageError& error = cost.error;
  report.name = cost.name;
  report.mse = ratio(error.error, static_cast<double>(error.use.values));
  report.relative = ratio(error.error, error.energy);
  if (error.weighted_energy > 0) report.weighted = error.weighted_error / error.weighted_energy;
  report.outliers_observed =
      ratio(static_cast<double>(error.use.outliers), static_cast<double>(error.use.judged));
  report.outliers_nominal = cost.outlier_fraction;
  report.outliers_dropped =
      ratio(static_cast<double>(error.use.dropped), static_cast<double>(error.use.outliers));
  report.thresholds_calibrated = cost.thresholds == formats::ThresholdScope::channel;
  report.alone = cost.alone;
  if (error.attentions > 0)
    report.attention_agreement = error.shared_attention / static_cast<double>(error.attentions);
  return report;
}

std::optional<double> mean_agreement(const std::vector<LayerReport>& layers) {
  double sum = 0, count = 0;
  for (const LayerReport& layer : layers) {
    for (const TensorReport& tensor : layer.tensors) {
      if (!tensor.attention_agreement) continue;
      sum += *tensor.attention_agreement;
      ++count;
    }
  }
  return count > 0 ? std::optional(sum / count) : std::nullopt;
}

std::vector<MethodScore> score_each(const std::vector<WindowScores>& windows) {
  std::vector<MethodScore> scores;
  for (const WindowScores& window : windows) scores.push_back(summarise({&window, 1}));
  return scores;
}

std::vector<MethodReport> report_methods(const ValidationJob& job, const std::vector<MethodCost>& costs) {
  const auto exact = std::ranges::find(costs, kFullPrecision, &MethodCost::name);
  std::vector<MethodReport> reports;
  for (const MethodCost& cost : costs) {
    MethodReport report;
    report.name = cost.name;
    report.score = cost.score;
    report.windows = score_each(cost.windows);
    report.perplexity_delta = cost.score.perplexity - exact->score.perplexity;
    report.perplexity_delta_stderr = cost.perplexity_delta_stderr;
    report.bits_per_value = cost.bits_per_value();
    report.static_bytes = cost.static_bytes;
    if (&cost == &*exact)
      report.bits_per_value = 8.0 * static_cast<double>(at::elementSize(job.session.placement.dtype));
    for (const LayerCost& layer : cost.layers) {
      report.layers.push_back({layer.layer, {}});
      for (const TensorCost& tensor : layer.tensors)
        report.layers.back().tensors.push_back(report_tensor(tensor));
    }
    report.attention_agreement = mean_agreement(report.layers);
    reports.push_back(std::move(report));
  }
  return reports;
}

std::vector<std::string> judge_inputs(const ValidationJob& job) {
  std::vector<std::string> warnings = job.session.windows.warnings;
  const std::int64_t most = job.session.config().max_positions;
  for (const ValidationRun run : job.runs()) {
    const std::int64_t length = job.windows(run).seqlen;
    if (most <= 0 || length <= most || run == ValidationRun::decoding) continue;
    warnings.push_back(base::concat(
        run == ValidationRun::text ? "windows" : "prompts", " of ", length, " tokens exceed the ", most,
        " positions that the model was made for; what it does there says little"));
  }
  if (!job.codebook) return warnings;
  const formats::CalibrationInfo& calibration = job.codebook->calibration;
  const bool paged = std::ranges::any_of(job.methods, [](const NamedMethod& method) {
    return method.name.ends_with(kPagedSuffix) || method.name.ends_with(kKernelsSuffix);
  });
  if (paged && calibration.value_scope != "head")
    warnings.emplace_back(
        "pages find a value's thresholds for each kv head, and this codebook was fitted to those over all "
        "heads: calibrate with --value-scope head for a cache in pages");
  const std::vector<std::string> calibrated = calibrated_tokens(*job.codebook);
  if (std::ranges::find(calibrated, job.session.windows.sha256()) != calibrated.end())
    warnings.emplace_back(
        "these tokens are those that the codebook was calibrated on; what it costs on others shows "
        "only there");
  for (const formats::TextInfo& text : job.session.windows.texts) {
    const bool known = std::ranges::find(calibration.texts, text.sha256, &formats::TextInfo::sha256) !=
                       calibration.texts.end();
    if (known)
      warnings.push_back(base::concat(text.name,
                                      " is a text that the codebook was calibrated on; what it costs on "
                                      "others shows only there"));
  }
  return warnings;
}

bool has_drifted(const TensorReport& tensor) {
  return tensor.thresholds_calibrated && tensor.outliers_nominal > 0 &&
         tensor.outliers_observed > kDrift * tensor.outliers_nominal;
}

// One line a method: where the text has far more outliers than the calibration kept apart.
std::vector<std::string> judge_outliers(const std::vector<MethodReport>& methods) {
  std::vector<std::string> warnings;
  for (const MethodReport& method : methods) {
    std::string places;
    int count = 0;
    for (const LayerReport& layer : method.layers) {
      for (const TensorReport& tensor : layer.tensors) {
        if (!has_drifted(tensor)) continue;
        if (++count <= 4)
          places += base::concat(count == 1 ? "" : ", ", "layer ", layer.layer, " ", tensor.name, "s");
      }
    }
    if (count == 0) continue;
    if (count > 4) places += base::concat(" and ", count - 4, " more");
    warnings.push_back(base::concat(method.name, ": more than twice the nominal share of outliers in ",
                                    places, "; this text is of another kind than the calibration's"));
  }
  return warnings;
}

void warn(ValidationReport& report, base::Progress& progress, const std::vector<std::string>& warnings) {
  for (const std::string& warning : warnings) progress.warning(warning);
  report.warnings.insert(report.warnings.end(), warnings.begin(), warnings.end());
}

class Runs {
 public:
  Runs(const ValidationJob& job, base::Progress& progress) : job_(job), progress_(progress) {}

  // What the text shows: every method on the same windows.
  [[nodiscard]] std::vector<MethodReport> score_text(const RunNeed& need) const {
    ComparisonOptions options = comparison(need, job_.session.windows.samples);
    options.first_scored.assign(options.first_scored.size(), job_.first_scored);
    options.each_alone = job_.options.per_layer_kl;
    return report_methods(job_, run(job_.session.windows, options));
  }

  // The windows' beginnings as prompts, and what full precision writes after them.
  void decode(const RunNeed& need, std::vector<MethodReport>& reports) const {
    const std::int64_t tokens = job_.options.generate;
    const TokenWindows windows = continue_windows(job_.session, job_.session.windows,
                                                  {.tokens = tokens,
                                                   .lanes = need.need.lanes,
                                                   .memory_bytes = cache_bytes(need.need),
                                                   .scratch = job_.scratch_folder()},
                                                  progress_);
    release();
    ComparisonOptions options = comparison(need, windows.samples);
    options.stage = "decoding, ";
    options.decoded = tokens;
    for (std::int64_t w = 0; w < windows.samples; ++w)
      options.first_scored[static_cast<std::size_t>(w)] =
          static_cast<std::int64_t>(windows.sample(w).size()) - tokens - 1;
    const std::vector<MethodCost> costs = run(windows, options);
    for (std::size_t m = 0; m < costs.size(); ++m)
      reports[m].decoding = {costs[m].score, score_each(costs[m].windows),
                             summarise_positions(costs[m].windows)};
  }

  void ask_for_passkeys(const RunNeed& need, std::vector<MethodReport>& reports) const {
    ComparisonOptions options = comparison(need, 0);
    options.first_scored = job_.passkey->first_scored;
    options.stage = "passkeys, ";
    options.errors = false;
    const std::vector<MethodCost> costs = run(job_.passkey->windows, options);
    for (std::size_t m = 0; m < costs.size(); ++m) {
      for (std::size_t w = 0; w < costs[m].windows.size(); ++w) {
        std::vector<PasskeyReport>& lengths = reports[m].passkey;
        const std::vector<std::uint8_t>& recalled = costs[m].windows[w].recalled;
        if (w % kPasskeyPlaces == 0)
          lengths.push_back({job_.options.passkey[w / kPasskeyPlaces], kPasskeyPlaces, 0});
        if (std::ranges::find(recalled, 0) == recalled.end()) ++lengths.back().retrieved;
      }
    }
  }

 private:
  [[nodiscard]] ComparisonOptions comparison(const RunNeed& need, std::int64_t windows) const {
    return {.first_scored = std::vector<std::int64_t>(static_cast<std::size_t>(windows)),
            .lanes = need.need.lanes,
            .memory_bytes = cache_bytes(need.need),
            .scratch = job_.scratch_folder()};
  }
  // What a run held is not kept for the next.
  static void release() {
    TensorMemory::release();
    release_freed_memory();
  }
  [[nodiscard]] std::vector<MethodCost> run(const TokenWindows& windows,
                                            const ComparisonOptions& options) const {
    std::vector<MethodCost> costs =
        compare(job_.session, windows, job_.methods, job_.codebook.get(), options, progress_);
    release();
    return costs;
  }

  const ValidationJob& job_;
  base::Progress& progress_;
};

// Retrieval says something of methods where the model itself can do it.
std::vector<std::string> judge_passkeys(const MethodReport& exact) {
  const bool any = std::ranges::any_of(exact.passkey, [](const PasskeyReport& p) { return p.retrieved > 0; });
  if (exact.passkey.empty() || any) return {};
  return {
      "this model retrieves no passkey even at full precision, so that methods don't either says nothing of "
      "them; look at the agreement of attention"};
}

ValidationReport run_validation(const ValidationOptions& options, base::Progress& progress,
                                ValidationListener* listener) {
  const Clock::time_point start = Clock::now();
  const KeptLibtorchThreads of_the_host;
  const TensorMemory memory;
  const ValidationJob job = prepare_validation(options, progress);
  at::set_num_threads(job.session.placement.threads);
  ValidationReport report;
  std::vector<RunNeed> needs;
  for (const ValidationRun run : job.runs()) needs.push_back(job.need(run));
  report.plan = plan_validation(job, needs);
  if (listener != nullptr) listener->on_plan(report.plan);
  warn(report, progress, judge_inputs(job));
  for (std::size_t i = 0; i < needs.size(); ++i) check_need(needs[i].need, job.shape(job.runs()[i]));
  const Runs runs(job, progress);
  for (std::size_t i = 0; i < needs.size(); ++i) {
    TensorMemory::set_limit(needs[i].need.memory_limit_bytes - needs[i].need.base_bytes);
    switch (job.runs()[i]) {
      case ValidationRun::text:
        report.methods = runs.score_text(needs[i]);
        break;
      case ValidationRun::decoding:
        runs.decode(needs[i], report.methods);
        break;
      case ValidationRun::passkeys:
        runs.ask_for_passkeys(needs[i], report.methods);
        break;
    }
  }
  warn(report, progress, judge_outliers(report.methods));
  warn(report, progress, judge_passkeys(report.methods.front()));
  report.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return report;
}

}  // namespace

ValidationReport validate(const ValidationOptions& options, base::Progress& progress,
                          ValidationListener* listener) {
  try {
    return run_validation(options, progress, listener);
  } catch (const std::filesystem::filesystem_error& error) {
    throw base::SystemError(
        base::concat("cannot look at ", error.path1().string(), ": ", error.code().message()));
  }
}

}  // namespace kvcal::calib
