#include "calib/validation_job.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "calib/open_session.h"
#include "calib/text/validation_windows.h"
#include "calib/validate/continuation.h"

namespace kvcal::calib {
namespace {

// Of a lane, for each number of the tensor that is stored: what it was, what it comes back as, and codes.
constexpr std::int64_t kStorageBytesPerNumber = 16;
// For each logit: those of the model and the method, log-probabilities and probabilities of the one, those of the
// other, a difference and a product, the last five in float64.
constexpr std::int64_t kScoreBytesPerLogit = 56;
// What a token costs that is decoded alone, in tokens of a window: the weights are read for it, and its past.
constexpr double kDecodedTokens = 12;

void check_options(const ValidationOptions& options) {
  if (options.texts.empty() == options.tokens.empty()) {
    throw base::WrongUsage(options.texts.empty() ? "give validation text: --text FILE, or --tokens FILE.npy"
                                                 : "--text and --tokens exclude each other");
  }
  if (options.device != "cpu") {
    throw base::WrongUsage(
        base::concat("--device is '", options.device, "': this version validates on the cpu only"));
  }
  if (options.generate < 0) throw base::WrongUsage("--generate: expected 1 or more");
  for (const std::int64_t length : options.passkey)
    if (length < 1)
      throw base::WrongUsage(base::concat("--passkey ", length, ": expected a number of tokens"));
  if (options.threads < 0)
    throw base::WrongUsage(base::concat("--threads ", options.threads, ": expected 0 or more"));
}

void read_windows(ValidationJob& job, base::Progress& progress) {
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

void check_windows(const ValidationJob& job) {
  for (std::int64_t w = 0; w < job.session.windows.samples; ++w) {
    const auto length = static_cast<std::int64_t>(job.session.windows.sample(w).size());
    if (length >= job.first_scored + 2) continue;
    throw base::WrongUsage(base::concat("window ", w, " has ", length,
                                        " tokens, which leaves none to score; it takes ",
                                        job.first_scored + 2));
  }
  for (std::int64_t w = 0; job.options.generate > 0 && w < job.session.windows.samples; ++w) {
    const auto length = static_cast<std::int64_t>(job.session.windows.sample(w).size());
    if (length > job.options.generate) continue;
    throw base::WrongUsage(base::concat("--generate ", job.options.generate, " leaves window ", w, " of ",
                                        length, " tokens no prompt; give fewer"));
  }
}

void make_passkeys(ValidationJob& job) {
  if (job.options.passkey.empty()) return;
  const auto tokenizer = formats::load_tokenizer(job.session.folder.path);
  job.passkey = passkey_prompts(job.options.passkey, job.options.bos, *tokenizer);
  check_vocabulary(job.session, job.passkey->windows);
}

// The codebook is of this very model, or the user insists.
void check_model(const ValidationJob& job) {
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

void make_methods(ValidationJob& job) {
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

std::int64_t largest_tensor(const Session& session) {
  std::int64_t channels = 0;
  for (int layer = 0; layer < session.num_layers(); ++layer)
    for (const formats::CachedTensor& tensor : session.model->cache(layer))
      channels = std::max(channels, tensor.channels());
  return channels;
}

// Hidden states of all windows and variants that exist together, in the run that has most.
std::int64_t state_bytes(const ValidationJob& job) {
  const std::int64_t number = static_cast<std::int64_t>(at::elementSize(job.session.placement.dtype));
  const auto states = [&](const TokenWindows& windows, bool each_alone) {
    return comparison_states(job.session, job.stored_methods(), each_alone) * windows.tokens() *
           job.session.config().hidden_size * number;
  };
  const TokenWindows& windows = job.session.windows;
  std::int64_t most = states(windows, job.options.per_layer_kl);
  if (job.options.generate > 0) most = std::max(most, continuation_bytes(job.session, windows));
  if (job.passkey) most = std::max(most, states(job.passkey->windows, false));
  return most;
}

// How often the windows' tokens go through all layers.
double rounds(const ValidationJob& job) {
  const std::int64_t methods = job.stored_methods();
  const auto layers = static_cast<double>(job.session.num_layers());
  const auto tokens = static_cast<double>(job.session.windows.tokens());
  double sum =
      static_cast<double>(comparison_layers(job.session, methods, job.options.per_layer_kl)) / layers;
  const auto once = static_cast<double>(methods + 1);
  // Written by full precision, then read by all.
  const auto decoded = static_cast<double>(job.session.windows.samples * job.options.generate);
  if (decoded > 0) sum += (once + 1) * (1 + kDecodedTokens * decoded / tokens);
  if (job.passkey) sum += once * static_cast<double>(job.passkey->windows.tokens()) / tokens;
  return sum;
}

// All layers forward and the head, as often as there are variants.
ResourceNeed estimate(const ValidationJob& job) {
  const auto layers = static_cast<std::size_t>(job.session.num_layers());
  RemainingWork left{std::vector<bool>(layers + 1, true), true, std::vector<bool>(layers + 1),
                     std::vector<bool>(layers)};
  ResourceNeed need = estimate_need(job.run_shape(), left);
  need.seconds_low *= rounds(job);
  need.seconds_high *= rounds(job);
  need.disk_bytes = std::max<std::int64_t>(0, state_bytes(job) - cache_bytes(need));
  return need;
}

}  // namespace

std::filesystem::path ValidationJob::scratch_folder() const {
  return options.scratch.empty() ? std::filesystem::temp_directory_path() : options.scratch;
}

RunShape ValidationJob::run_shape() const {
  const TokenWindows& windows = session.windows;
  const std::int64_t longest = std::max(windows.seqlen, passkey ? passkey->windows.seqlen : 0);
  return {.model = *session.model,
          .weights = *session.weights,
          .samples = windows.samples,
          .seqlen = longest,
          .tokens = windows.tokens(),
          .with_gradients = false,
          .threads = session.placement.threads,
          .memory_bytes = options.memory_bytes,
          .work = scratch_folder(),
          .lane_bytes = longest * largest_tensor(session) * kStorageBytesPerNumber,
          .head_bytes_per_logit = kScoreBytesPerLogit,
          .smaller = "--seqlen"};
}

ValidationJob prepare_validation(const ValidationOptions& options, base::Progress& progress) {
  check_options(options);
  ValidationJob job{options, open_session(options.model, options.dtype, options.threads), 0, {}, {}, {}};
  if (!options.codebook.empty()) job.codebook = formats::read_codebook(options.codebook);
  check_model(job);
  make_methods(job);
  read_windows(job, progress);
  check_windows(job);
  make_passkeys(job);
  return job;
}

ValidationPlan plan_validation(const ValidationJob& job) {
  const TokenWindows& windows = job.session.windows;
  ValidationPlan plan{job.session.folder.name,
                      job.options.codebook,
                      windows.samples,
                      windows.seqlen,
                      windows.tokens(),
                      windows.tokens() - windows.samples * (job.first_scored + 1),
                      job.options.generate,
                      job.options.passkey,
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

}  // namespace kvcal::calib
