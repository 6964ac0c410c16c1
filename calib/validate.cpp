#include "calib/validate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <set>

#include "base/error.h"
#include "calib/open_session.h"
#include "calib/plan/libtorch_threads.h"
#include "calib/plan/tensor_memory.h"
#include "calib/text/validation_windows.h"
#include "calib/validate/comparison.h"

namespace kvcal::calib {
namespace {

using Clock = std::chrono::steady_clock;

// Of a lane, for each number of the tensor that is stored: what it was, what it comes back as, and codes.
constexpr std::int64_t kStorageBytesPerNumber = 16;
// For each logit: those of the model and the method, log-probabilities and probabilities of the one, those of the
// other, a difference and a product, the last five in float64.
constexpr std::int64_t kScoreBytesPerLogit = 56;
// Outliers beyond so many times their nominal share: the text is not what was calibrated on.
constexpr double kDrift = 2;

/// A validation whose options are checked and whose inputs are open.
struct Job {
  const ValidationOptions& options;
  Session session;
  std::int64_t first_scored = 0;
  std::optional<formats::Codebook> codebook;
  std::vector<NamedMethod> methods;

  [[nodiscard]] const formats::Codebook* codebook_or_null() const { return codebook ? &*codebook : nullptr; }
  [[nodiscard]] std::int64_t stored_methods() const { return static_cast<std::int64_t>(methods.size()) - 1; }
};

void check_options(const ValidationOptions& options) {
  if (options.texts.empty() == options.tokens.empty()) {
    throw base::WrongUsage(options.texts.empty() ? "give validation text: --text FILE, or --tokens FILE.npy"
                                                 : "--text and --tokens exclude each other");
  }
  if (options.device != "cpu") {
    throw base::WrongUsage(
        base::concat("--device is '", options.device, "': this version validates on the cpu only"));
  }
  if (options.threads < 0)
    throw base::WrongUsage(base::concat("--threads ", options.threads, ": expected 0 or more"));
}

void read_windows(Job& job, base::Progress& progress) {
  const ValidationOptions& options = job.options;
  Session& session = job.session;
  if (options.tokens.empty()) {
    const auto tokenizer = formats::load_tokenizer(session.folder.path);
    ValidationText text;
    text.files = options.texts;
    text.windows = options.windows;
    text.all_windows = options.all_windows;
    text.seqlen = options.seqlen.value_or(text.seqlen);
    text.protocol = options.protocol;
    text.bos = options.bos;
    text.parse_special = options.parse_special;
    ScoredWindows windows = validation_windows(text, *tokenizer, progress);
    session.windows = std::move(windows.windows);
    job.first_scored = windows.first_scored;
    check_vocabulary(session, session.windows);
    return;
  }
  if (options.bos != BosPlace::automatic && options.bos != BosPlace::none)
    throw base::WrongUsage("--bos goes with --text; --tokens are used as they are");
  session.windows = load_tokens(options.tokens, session.config().vocab_size);
  const auto check = [&](const char* name, std::optional<std::int64_t> asked, std::int64_t given) {
    if (!asked || *asked == given) return;
    throw base::WrongUsage(base::concat(name, " ", *asked, " contradicts ", options.tokens.string(),
                                        ", which holds ", session.windows.samples, " x ",
                                        session.windows.seqlen));
  };
  check("--windows", options.windows, session.windows.samples);
  check("--seqlen", options.seqlen, session.windows.seqlen);
  job.first_scored = first_scored(options.protocol, session.windows.seqlen);
}

void check_windows(const Job& job) {
  for (std::int64_t w = 0; w < job.session.windows.samples; ++w) {
    const auto length = static_cast<std::int64_t>(job.session.windows.sample(w).size());
    if (length >= job.first_scored + 2) continue;
    throw base::WrongUsage(base::concat("window ", w, " has ", length,
                                        " tokens, which leaves none to score; it takes ",
                                        job.first_scored + 2));
  }
}

// The codebook is of this very model, or the user insists.
void check_model(const Job& job) {
  if (!job.codebook || job.options.force) return;
  const bool config = job.codebook->model.config_sha256 == job.session.config().sha256();
  const bool weights =
      job.codebook->model.weights_sha256 == job.session.weights->checkpoint().weights_sha256();
  if (config && weights) return;
  throw base::InvalidInput(base::concat(job.options.codebook.string(), " is the codebook of another model, ",
                                        job.codebook->model.name, ": its ",
                                        !config && !weights ? "configuration and weights differ"
                                        : config            ? "weights differ"
                                                            : "configuration differs",
                                        " from ", job.session.folder.path.string(),
                                        "'s; give --force to use it all the same"));
}

void make_methods(Job& job) {
  std::vector<std::string> names = job.options.methods;
  if (names.empty()) names = default_methods(job.codebook_or_null());
  job.methods.push_back({kFullPrecision, nullptr});
  std::set<std::string> seen;
  for (const std::string& name : names) {
    if (!seen.insert(name).second) throw base::WrongUsage(base::concat("--methods has ", name, " twice"));
    if (name != kFullPrecision) job.methods.push_back({name, make_method(name, job.codebook_or_null())});
  }
  // Whether each method has what it needs is known before any work.
  for (int layer = 0; layer < job.session.num_layers(); ++layer) {
    for (const NamedMethod& method : job.methods)
      if (method.method)
        (void)layer_storages(method.name, *method.method, layer, job.session.model->cache(layer));
  }
}

Job prepare(const ValidationOptions& options, base::Progress& progress) {
  check_options(options);
  Job job{options, open_session(options.model, options.dtype, options.threads), 0, {}, {}};
  if (!options.codebook.empty()) job.codebook = formats::read_codebook(options.codebook);
  check_model(job);
  make_methods(job);
  read_windows(job, progress);
  check_windows(job);
  return job;
}

std::int64_t largest_tensor(const Session& session) {
  std::int64_t channels = 0;
  for (int layer = 0; layer < session.num_layers(); ++layer)
    for (const formats::CachedTensor& tensor : session.model->cache(layer))
      channels = std::max(channels, tensor.channels());
  return channels;
}

std::filesystem::path scratch_folder(const ValidationOptions& options) {
  return options.scratch.empty() ? std::filesystem::temp_directory_path() : options.scratch;
}

RunShape run_shape(const Job& job) {
  const TokenWindows& windows = job.session.windows;
  return {.model = *job.session.model,
          .weights = *job.session.weights,
          .samples = windows.samples,
          .seqlen = windows.seqlen,
          .tokens = windows.tokens(),
          .with_gradients = false,
          .threads = job.session.placement.threads,
          .memory_bytes = job.options.memory_bytes,
          .work = scratch_folder(job.options),
          .lane_bytes = windows.seqlen * largest_tensor(job.session) * kStorageBytesPerNumber,
          .head_bytes_per_logit = kScoreBytesPerLogit,
          .smaller = "--seqlen"};
}

// Hidden states of all windows and variants that exist together.
std::int64_t state_bytes(const Job& job) {
  return comparison_states(job.session, job.stored_methods(), job.options.per_layer_kl) *
         job.session.windows.tokens() * job.session.config().hidden_size *
         static_cast<std::int64_t>(at::elementSize(job.session.placement.dtype));
}

// All layers forward and the head, as often as there are variants.
ResourceNeed estimate(const Job& job) {
  const auto layers = static_cast<std::size_t>(job.session.num_layers());
  RemainingWork left{std::vector<bool>(layers + 1, true), true, std::vector<bool>(layers + 1),
                     std::vector<bool>(layers)};
  ResourceNeed need = estimate_need(run_shape(job), left);
  const double rounds =
      static_cast<double>(comparison_layers(job.session, job.stored_methods(), job.options.per_layer_kl)) /
      static_cast<double>(layers);
  need.seconds_low *= rounds;
  need.seconds_high *= rounds;
  need.disk_bytes = std::max<std::int64_t>(0, state_bytes(job) - cache_bytes(need));
  return need;
}

ValidationPlan make_plan(const Job& job) {
  const TokenWindows& windows = job.session.windows;
  ValidationPlan plan{job.session.folder.name,
                      job.options.codebook,
                      windows.samples,
                      windows.seqlen,
                      windows.tokens(),
                      windows.tokens() - windows.samples * (job.first_scored + 1),
                      base::choice_name(job.options.protocol, kProtocols),
                      windows.bos,
                      dtype_text(job.session.placement.dtype),
                      {},
                      estimate(job),
                      0};
  for (const NamedMethod& method : job.methods) plan.methods.push_back(method.name);
  plan.memory_bytes = plan.need.memory_bytes + std::min(state_bytes(job), cache_bytes(plan.need));
  return plan;
}

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
  report.thresholds_calibrated = cost.thresholds == formats::ThresholdScope::channel;
  report.alone = cost.alone;
  return report;
}

std::vector<MethodReport> report_methods(const Job& job, const std::vector<MethodCost>& costs) {
  const auto exact = std::ranges::find(costs, kFullPrecision, &MethodCost::name);
  std::vector<MethodReport> reports;
  for (const MethodCost& cost : costs) {
    MethodReport report{cost.name,
                        cost.score,
                        cost.score.perplexity - exact->score.perplexity,
                        cost.perplexity_delta_stderr,
                        cost.bits_per_value(),
                        cost.static_bytes,
                        {}};
    if (&cost == &*exact)
      report.bits_per_value = 8.0 * static_cast<double>(at::elementSize(job.session.placement.dtype));
    for (const LayerCost& layer : cost.layers) {
      report.layers.push_back({layer.layer, {}});
      for (const TensorCost& tensor : layer.tensors)
        report.layers.back().tensors.push_back(report_tensor(tensor));
    }
    reports.push_back(std::move(report));
  }
  return reports;
}

std::vector<std::string> judge_inputs(const Job& job) {
  std::vector<std::string> warnings = job.session.windows.warnings;
  if (!job.codebook) return warnings;
  const formats::CalibrationInfo& calibration = job.codebook->calibration;
  if (calibration.tokens_sha256 == job.session.windows.sha256())
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

ValidationReport run_validation(const ValidationOptions& options, base::Progress& progress,
                                ValidationListener* listener) {
  const Clock::time_point start = Clock::now();
  const KeptLibtorchThreads of_the_host;
  const TensorMemory memory;
  const Job job = prepare(options, progress);
  at::set_num_threads(job.session.placement.threads);
  ValidationReport report;
  report.plan = make_plan(job);
  const ResourceNeed& need = report.plan.need;
  if (listener != nullptr) listener->on_plan(report.plan);
  warn(report, progress, judge_inputs(job));
  check_need(need, run_shape(job));
  TensorMemory::set_limit(need.memory_limit_bytes - need.base_bytes);
  const std::vector<MethodCost> costs = compare(job.session, job.methods, job.codebook_or_null(),
                                                {.first_scored = job.first_scored,
                                                 .each_alone = options.per_layer_kl,
                                                 .lanes = need.lanes,
                                                 .memory_bytes = cache_bytes(need),
                                                 .scratch = scratch_folder(options)},
                                                progress);
  report.methods = report_methods(job, costs);
  warn(report, progress, judge_outliers(report.methods));
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
