#include "calib/validation_job.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "calib/open_session.h"
#include "calib/text/text_source.h"
#include "calib/text/validation_windows.h"
#include "calib/validate/attention_shares.h"
#include "calib/validate/continuation.h"
#include "cuda/record_kernels.h"

namespace kvcal::calib {
namespace {

// Of a lane, for each number of the tensor that is stored: what it was, what it comes back as, and codes.
constexpr std::int64_t kStorageBytesPerNumber = 16;
// For each logit: those of the model and the method, log-probabilities and probabilities of the one, those of the
// other, a difference and a product, the last five in float64.
constexpr std::int64_t kScoreBytesPerLogit = 56;
// Without a method: the model's, in float32 and in float64, log-probabilities and probabilities.
constexpr std::int64_t kExactBytesPerLogit = 28;
// No model reads longer prompts today.
constexpr std::int64_t kLongestPasskey = std::int64_t{1} << 24;
// What a token costs that is decoded alone, in tokens of a window: the weights are read for it, and its past.
constexpr double kDecodedTokens = 12;

// Of the text, where kernels run on the CPU and nobody says a number.
constexpr std::int64_t kWindowsLaneByLane = 2;

void check_options(const ValidationOptions& options) {
  if (options.texts.empty() == options.tokens.empty()) {
    throw base::WrongUsage(options.texts.empty() ? "give validation text: --text FILE, or --tokens FILE.npy"
                                                 : "--text and --tokens exclude each other");
  }
  check_sources(options.texts);
  if (options.device != "cpu") {
    const std::string& problem = codec::kernels_device_problem();
    throw base::WrongUsage(
        base::concat("--device is '", options.device,
                     "': this version computes the model on the cpu only. --kernels uses a CUDA "
                     "device by itself",
                     problem.empty() ? "" : "; here it cannot: ", problem));
  }
  if (options.generate < 0) throw base::WrongUsage("--generate: expected 1 or more");
  for (const std::int64_t length : options.passkey) {
    if (length >= 1 && length <= kLongestPasskey) continue;
    throw base::WrongUsage(
        base::concat("--passkey ", length, ": expected a prompt's tokens, 1 to ", kLongestPasskey));
  }
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
    // Lane by lane the kernels are slow.
    if (options.kernels && !codec::kernels_device_problem().empty()) text.most_windows = kWindowsLaneByLane;
    text.all_windows = options.all_windows;
    text.seqlen = options.seqlen.value_or(text.seqlen);
    text.protocol = options.protocol;
    text.bos = options.bos;
    text.parse_special = options.parse_special;
    text.text_field = options.text_field;
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
  const auto tokenizer = [&] {
    try {
      return formats::load_tokenizer(job.session.folder.path);
    } catch (const base::InvalidInput& error) {
      throw base::InvalidInput(base::concat("--passkey writes its own text and needs the model's tokenizer (",
                                            error.what(),
                                            "); leave out --passkey, or copy the tokenizer there"));
    }
  }();
  job.passkey = passkey_prompts(job.options.passkey, job.options.bos, *tokenizer);
  check_vocabulary(job.session, job.passkey->windows);
}

/// Whether a name is that of a codebook's datatype, which has a form in pages.
bool has_pages(std::string_view name) {
  return name.starts_with("nuq") && !name.ends_with("-nosink");
}

std::string without_pages(std::string name) {
  for (const std::string_view suffix : {kPagedSuffix, kKernelsSuffix})
    if (name.ends_with(suffix)) return name.substr(0, name.size() - suffix.size());
  return name;
}

/// After each of the codebook's methods its form in pages, written by the CPU codec and by the kernels. Throws what
/// make_method() does of a name.
std::vector<std::string> with_kernels(const std::vector<std::string>& names,
                                      const formats::Codebook* codebook) {
  if (codebook == nullptr)
    throw base::WrongUsage("--kernels writes a codebook's pages; name it with --codebook");
  std::vector<std::string> all;
  bool any = false;
  for (const std::string& name : names) {
    all.push_back(name);
    (void)make_method(name, codebook);
    if (!has_pages(name)) continue;
    any = true;
    for (const char* suffix : {kPagedSuffix, kKernelsSuffix}) {
      const std::string form = without_pages(name) + suffix;
      const auto is_form = [&](const std::string& other) { return other == form; };
      if (std::ranges::any_of(all, is_form) || std::ranges::any_of(names, is_form)) continue;
      (void)make_method(form, codebook);  // says why the codebook has no pages, where it has none
      all.push_back(form);
    }
  }
  if (any) return all;
  throw base::WrongUsage(
      "--kernels writes pages of the codebook's own methods; name one of them in --methods");
}

std::string kernels_place() {
  const std::string& problem = codec::kernels_device_problem();
  if (problem.empty()) return "on the CUDA device";
  return base::concat("lane by lane on the CPU, which is slow: ", problem);
}

void make_methods(ValidationJob& job) {
  std::vector<std::string> names = job.options.methods;
  if (names.empty()) names = default_methods(job.codebook.get());
  if (job.options.kernels) names = with_kernels(names, job.codebook.get());
  job.methods.push_back({kFullPrecision, nullptr});
  std::set<std::string> seen;
  for (const std::string& name : names) {
    if (!seen.insert(name).second) throw base::WrongUsage(base::concat("--methods has ", name, " twice"));
    if (name != kFullPrecision) job.methods.push_back({name, make_method(name, job.codebook.get())});
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

// Of attention that is compared, for each head and token: logits, shares and what becomes of them.
constexpr std::int64_t kShareBytes = 4 * 4 * AttentionShares::kQueries;

// What hooks hold of a sequence of so many tokens.
std::int64_t hook_bytes(const ValidationJob& job, ValidationRun run, std::int64_t tokens) {
  const auto number = static_cast<std::int64_t>(at::elementSize(job.session.placement.dtype));
  std::int64_t most = 0, heads = 0;
  for (int layer = 0; layer < job.session.num_layers(); ++layer) {
    std::int64_t channels = 0;
    for (const formats::CachedTensor& tensor : job.session.model->cache(layer)) channels += tensor.channels();
    most = std::max(most, channels);
    heads = std::max<std::int64_t>(
        heads, job.session.config().layers[static_cast<std::size_t>(layer)].num_attention_heads);
  }
  std::int64_t bytes = tokens * largest_tensor(job.session) * kStorageBytesPerNumber;
  if (run == ValidationRun::decoding) bytes += 2 * tokens * most * number;
  if (run == ValidationRun::text) bytes += tokens * (2 * most * number + heads * kShareBytes);
  return bytes;
}

std::int64_t comparison_state_bytes(const ValidationJob& job, ValidationRun run) {
  const bool each_alone = run == ValidationRun::text && job.options.per_layer_kl;
  return comparison_states(job.session, job.stored_methods(), each_alone) * job.windows(run).tokens() *
         job.session.config().hidden_size *
         static_cast<std::int64_t>(at::elementSize(job.session.placement.dtype));
}

// How often the windows' tokens go through all layers.
double rounds(const ValidationJob& job, ValidationRun run) {
  const std::int64_t methods = job.stored_methods();
  if (run != ValidationRun::decoding) {
    const bool each_alone = run == ValidationRun::text && job.options.per_layer_kl;
    return static_cast<double>(comparison_layers(job.session, methods, each_alone)) /
           static_cast<double>(job.session.num_layers());
  }
  // Written by full precision, then read by it and all methods.
  const TokenWindows& windows = job.windows(run);
  const double decoded = static_cast<double>(windows.samples * job.options.generate);
  return static_cast<double>(methods + 2) *
         (1 + kDecodedTokens * decoded / static_cast<double>(windows.tokens()));
}

// All layers forward and the head, once.
RemainingWork one_pass(const Session& session) {
  const auto layers = static_cast<std::size_t>(session.num_layers());
  return {std::vector<bool>(layers + 1, true), true, std::vector<bool>(layers + 1),
          std::vector<bool>(layers)};
}

// Bytes a second in which weights are read that do not stay: of a disk, slow and fast.
constexpr double kSlowDisk = 0.5e9, kFastDisk = 5e9;

}  // namespace

std::int64_t RunNeed::room_bytes() const {
  return std::max<std::int64_t>(0, cache_bytes(need) - kept_bytes);
}

std::int64_t RunNeed::memory_bytes() const {
  return need.memory_bytes + kept_bytes + std::min(state_bytes, room_bytes());
}

std::filesystem::path ValidationJob::scratch_folder() const {
  return options.scratch.empty() ? std::filesystem::temp_directory_path() : options.scratch;
}

const TokenWindows& ValidationJob::windows(ValidationRun run) const {
  return run == ValidationRun::passkeys ? passkey->windows : session.windows;
}

std::vector<ValidationRun> ValidationJob::runs() const {
  std::vector<ValidationRun> asked = {ValidationRun::text};
  if (options.generate > 0) asked.push_back(ValidationRun::decoding);
  if (passkey) asked.push_back(ValidationRun::passkeys);
  return asked;
}

RunShape ValidationJob::shape(ValidationRun run) const {
  const TokenWindows& its = windows(run);
  return {.model = *session.model,
          .weights = *session.weights,
          .samples = its.samples,
          .seqlen = its.seqlen,
          .tokens = its.tokens(),
          .with_gradients = false,
          .threads = session.placement.threads,
          .memory_bytes = options.memory_bytes,
          .work = scratch_folder(),
          .lane_bytes = hook_bytes(*this, run, its.seqlen),
          .head_bytes_per_logit = stored_methods() > 0 ? kScoreBytesPerLogit : kExactBytesPerLogit,
          .smaller = run == ValidationRun::passkeys ? "--passkey" : "--seqlen"};
}

RunNeed ValidationJob::need(ValidationRun run) const {
  RunNeed result{estimate_need(shape(run), one_pass(session)), 0, comparison_state_bytes(*this, run)};
  ResourceNeed& need = result.need;
  need.seconds_low *= rounds(*this, run);
  need.seconds_high *= rounds(*this, run);
  if (run == ValidationRun::decoding) {
    const ContinuationNeed writing =
        continuation_need(session, windows(run), options.generate, cache_bytes(need));
    result.kept_bytes = writing.kept_bytes();
    result.state_bytes = std::max(result.state_bytes, writing.state_bytes);
    if (!writing.keeps_weights) {
      const double read = static_cast<double>(options.generate) * static_cast<double>(writing.weight_bytes);
      need.seconds_low += read / kFastDisk;
      need.seconds_high += read / kSlowDisk;
    }
  }
  need.disk_bytes = std::max<std::int64_t>(0, result.state_bytes - result.room_bytes());
  return result;
}

ValidationJob prepare_validation(const ValidationOptions& options, base::Progress& progress) {
  check_options(options);
  ValidationJob job{options, open_session(options.model, options.dtype, options.threads), 0, {}, {}, {}};
  if (!options.codebook.empty())
    job.codebook = std::make_unique<const formats::Codebook>(formats::read_codebook(options.codebook));
  if (job.codebook && !options.force) check_same_model(*job.codebook, options.codebook, job.session);
  make_methods(job);
  read_windows(job, progress);
  check_windows(job);
  make_passkeys(job);
  return job;
}

ValidationPlan plan_validation(const ValidationJob& job, const std::vector<RunNeed>& needs) {
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
                      {},
                      needs.front().need,
                      0};
  for (const RunNeed& need : needs) {
    plan.memory_bytes = std::max(plan.memory_bytes, need.memory_bytes());
    plan.need.disk_bytes = std::max(plan.need.disk_bytes, need.need.disk_bytes);
    if (&need == &needs.front()) continue;
    plan.need.seconds_low += need.need.seconds_low;
    plan.need.seconds_high += need.need.seconds_high;
  }
  for (const NamedMethod& method : job.methods) {
    plan.methods.push_back(method.name);
    if (method.name.ends_with(kKernelsSuffix)) plan.kernels = kernels_place();
  }
  return plan;
}

}  // namespace kvcal::calib
