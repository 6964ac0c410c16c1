#include "calib/calibration_job.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "calib/engine/activation_store.h"
#include "calib/open_session.h"
#include "calib/text/text_source.h"
#include "calib/version.h"
#include "formats/json.h"

namespace kvcal::calib {

using nlohmann::json;

namespace {

Ranges ranges_of(const CalibrationOptions& options) {
  return options.ranges.value_or(options.ablation ? Ranges::threshold : Ranges::fitted);
}

void check_lists(const CalibrationOptions& options) {
  if (options.bits.empty()) throw base::WrongUsage("--bits is empty: it may be 2, 3 and 4, such as 2,3,4");
  std::set<int> bits;
  for (const int b : options.bits) {
    if (b < 2 || b > 4)
      throw base::WrongUsage(base::concat("--bits has ", b, ": it may be 2, 3 and 4, such as 2,3,4"));
    if (!bits.insert(b).second) throw base::WrongUsage(base::concat("--bits has ", b, " twice"));
  }
  if (options.outliers.empty()) throw base::WrongUsage("--outliers is empty: give fractions such as 0,0.01");
  std::set<std::string> names;
  for (const double fraction : options.outliers) {
    if (!(fraction >= 0 && fraction < 0.5)) {
      throw base::WrongUsage(
          base::concat("--outliers has ", fraction,
                       ": it is the share of values kept apart, from 0 to less than 0.5; 1 % is 0.01"));
    }
    // Fractions that print the same would share a group of the file.
    if (!names.insert(formats::outlier_group_name(std::abs(fraction))).second)
      throw base::WrongUsage(base::concat("--outliers has ", fraction, " twice"));
  }
}

void check_options(const CalibrationOptions& options) {
  if (options.texts.empty() == options.tokens.empty()) {
    throw base::WrongUsage(options.texts.empty() ? "give calibration text: --text FILE, or --tokens FILE.npy"
                                                 : "--text and --tokens exclude each other");
  }
  check_sources(options.texts);
  if (options.out.empty()) throw base::WrongUsage("--out is missing: the codebook file to write");
  check_lists(options);
  if (options.sinks < 0)
    throw base::WrongUsage(base::concat("--sinks ", options.sinks, ": expected 0 or more"));
  if (options.ablation && options.sinks == 0) {
    throw base::WrongUsage(
        "--ablation tells what keeping sinks exact brings, and --sinks is 0; give 1 or more, or leave out "
        "--ablation");
  }
  if (options.ablation &&
      (ranges_of(options) != Ranges::threshold || options.value_rotation != ValueRotation::none)) {
    throw base::WrongUsage(
        "--ablation takes the paper's method apart; give --ranges threshold and --value-rotation none with "
        "it");
  }
  if (options.threads < 0)
    throw base::WrongUsage(base::concat("--threads ", options.threads, ": expected 0 or more"));
  if (options.samples.value_or(1) < 1) throw base::WrongUsage("--samples: expected 1 or more");
  if (options.seqlen.value_or(2) < 2) throw base::WrongUsage("--seqlen: expected 2 or more");
  if (options.device != "cpu") {
    throw base::WrongUsage(
        base::concat("--device is '", options.device, "': this version calibrates on the cpu only"));
  }
}

TokenWindows read_windows(CalibrationOptions& options, const Session& session, base::Progress& progress) {
  if (!options.tokens.empty()) {
    if (options.bos != BosPlace::automatic && options.bos != BosPlace::none) {
      throw base::WrongUsage("--bos goes with --text; --tokens are used as they are");
    }
    TokenWindows windows = load_tokens(options.tokens, session.config().vocab_size);
    const auto contradicts = [&](const char* name, std::optional<std::int64_t> asked, std::int64_t given) {
      if (asked && *asked != given) {
        throw base::WrongUsage(base::concat(name, " ", *asked, " contradicts ", options.tokens.string(),
                                            ", which holds ", windows.samples, " x ", windows.seqlen));
      }
    };
    contradicts("--samples", options.samples, windows.samples);
    contradicts("--seqlen", options.seqlen, windows.seqlen);
    return windows;
  }
  const auto tokenizer = formats::load_tokenizer(session.folder.path);
  TextSampling sampling;
  sampling.files = options.texts;
  sampling.samples = options.samples.value_or(sampling.samples);
  sampling.seqlen = options.seqlen.value_or(sampling.seqlen);
  sampling.bos = options.bos;
  sampling.parse_special = options.parse_special;
  sampling.text_field = options.text_field;
  sampling.seed = options.seed;
  TokenWindows windows = sample_texts(sampling, *tokenizer, progress);
  check_vocabulary(session, windows);
  const std::size_t record = formats::texts_json(windows.texts).size();
  if (record > formats::kMaxCodebookText) {
    throw base::WrongUsage(base::concat("--text: the names and hashes of ", windows.texts.size(),
                                        " files take ", record, " bytes in a codebook, which has room for ",
                                        formats::kMaxCodebookText, "; join some of the files"));
  }
  return windows;
}

void check_lengths(const CalibrationJob& job) {
  const std::int64_t needed = job.options.sinks + 2;
  for (std::int64_t i = 0; i < job.session.windows.samples; ++i) {
    const auto length = static_cast<std::int64_t>(job.session.windows.sample(i).size());
    if (length >= needed) continue;
    throw base::WrongUsage(base::concat("sample ", i, " has ", length, " tokens; with ", job.options.sinks,
                                        " sinks a window needs at least ", needed));
  }
}

std::vector<std::string> judge_windows(const CalibrationJob& job) {
  std::vector<std::string> warnings = job.session.windows.warnings;
  if (job.session.windows.chat_template_without_special) {
    warnings.emplace_back(
        "the model has a chat template and the text holds none of its special tokens; what it serves are "
        "chats, so calibrate on chats too, rendered with that template");
  }
  if (job.session.config().max_positions > 0 &&
      job.session.windows.seqlen > job.session.config().max_positions) {
    warnings.push_back(base::concat(
        "windows of ", job.session.windows.seqlen, " tokens exceed the ", job.session.config().max_positions,
        " positions that the model was made for; its activations there are not what it serves"));
  }
  return warnings;
}

std::string options_json(const CalibrationJob& job) {
  const CalibrationOptions& options = job.options;
  json fields = {{"bits", options.bits},
                 {"outliers", options.outliers},
                 {"samples", job.session.windows.samples},
                 {"seqlen", job.session.windows.seqlen},
                 {"sinks", options.sinks},
                 {"bos", job.session.windows.bos},
                 {"value_scope", base::choice_name(options.value_scope, kValueScopes)},
                 {"sensitivity", base::choice_name(options.sensitivity, kSensitivities)},
                 {"fisher_scale", base::choice_name(options.fisher_scale, kFisherScales)},
                 {"dtype", dtype_text(job.session.placement.dtype)},
                 {"device", options.device}};
  if (options.ablation) fields["ablation"] = true;
  if (ranges_of(options) != Ranges::threshold)
    fields["ranges"] = base::choice_name(ranges_of(options), kRanges);
  if (options.value_rotation != ValueRotation::none)
    fields["value_rotation"] = base::choice_name(options.value_rotation, kValueRotations);
  if (options.tokens.empty()) {
    fields["seed"] = options.seed;
    fields["parse_special"] = options.parse_special;
  }
  return fields.dump();
}

void fill_frame(CalibrationJob& job) {
  formats::Codebook& frame = job.frame;
  frame.created_by = std::string("kvcal ") + version();
  frame.model.name = job.session.folder.name;
  frame.model.architecture = job.session.config().architecture;
  frame.model.config_sha256 = job.session.config().sha256();
  frame.model.weights_sha256 = job.session.weights->checkpoint().weights_sha256();
  frame.model.num_layers = job.session.num_layers();
  // Defaults for the layers; what a layer is like stands with it.
  const std::vector<LayerConfig>& layers = job.session.config().layers;
  const auto attends =
      std::ranges::find_if(layers, [](const LayerConfig& layer) { return layer.num_attention_heads > 0; });
  const LayerConfig& first = attends != layers.end() ? *attends : layers.front();
  frame.model.num_attention_heads = first.num_attention_heads;
  frame.model.num_kv_heads = first.num_kv_heads;
  frame.model.head_dim = first.head_dim;
  frame.model.rope_json = first.rope_json;
  formats::CalibrationInfo& info = frame.calibration;
  info.revision = kRevision;
  info.options_json = options_json(job);
  info.texts = job.session.windows.texts;
  info.tokens_sha256 = job.session.windows.sha256();
  info.samples = job.session.windows.samples;
  info.seqlen = job.session.windows.seqlen;
  info.tokens = job.session.windows.tokens();
  info.bos = job.session.windows.bos;
  info.sinks = job.options.sinks;
  info.seed = job.options.tokens.empty() ? job.options.seed : 0;  // given tokens are taken as they are
  info.dtype = dtype_text(job.session.placement.dtype);
  info.device = job.options.device;
  info.value_scope = base::choice_name(job.options.value_scope, kValueScopes);
  info.sensitivity = base::choice_name(job.options.sensitivity, kSensitivities);
  info.fisher_scale = base::choice_name(job.options.fisher_scale, kFisherScales);
}

}  // namespace

std::string codebook_identity(const formats::Codebook& codebook) {
  json identity = {{"model config", codebook.model.config_sha256},
                   {"model weights", codebook.model.weights_sha256},
                   {"tokens", codebook.calibration.tokens_sha256},
                   {"version", codebook.created_by},
                   {"revision of the algorithm", codebook.calibration.revision}};
  const json options = formats::parse_json(codebook.calibration.options_json, "options");
  if (options.is_object()) {
    for (const auto& [key, value] : options.items()) identity["--" + key] = value;
  }
  json texts = json::array();
  for (const formats::TextInfo& text : codebook.calibration.texts) texts.push_back({text.name, text.sha256});
  identity["texts"] = texts;
  identity["model name"] = codebook.model.name;
  return identity.dump();
}

CheckpointShape CalibrationJob::checkpoint_shape() const {
  CheckpointShape shape{session.num_layers(), session.windows.samples,
                        activation_file_bytes(session.windows.samples, session.windows.tokens(),
                                              session.config().hidden_size, session.placement.dtype)};
  for (int layer = 0; layer < shape.layers; ++layer)
    shape.cached.push_back(!session.model->cache(layer).empty());
  return shape;
}

RunShape CalibrationJob::run_shape() const {
  return {.model = *session.model,
          .weights = *session.weights,
          .samples = session.windows.samples,
          .seqlen = session.windows.seqlen,
          .tokens = session.windows.tokens(),
          .with_gradients = with_gradients(),
          .outlier_fractions = static_cast<int>(options.outliers.size()),
          .ablation = options.ablation,
          .fitted_ranges = ranges_of(options) == Ranges::fitted,
          .token_per_head = options.value_scope == ValueScope::head,
          .activation_bytes = checkpoint_shape().activation_bytes,
          .threads = session.placement.threads,
          .memory_bytes = options.memory_bytes,
          .work = options.work};
}

FitOptions CalibrationJob::fit_options() const {
  FitOptions fit;
  fit.bits = options.bits;
  fit.outliers = options.outliers;
  fit.token_per_head = options.value_scope == ValueScope::head;
  fit.range_weights = options.fisher_scale == FisherScale::range;
  fit.threads = session.placement.threads;
  fit.ablation = options.ablation;
  fit.fitted_ranges = ranges_of(options) == Ranges::fitted;
  fit.turned_values = options.value_rotation == ValueRotation::hadamard;
  return fit;
}

CalibrationJob prepare_calibration(const CalibrationOptions& options, base::Progress& progress) {
  check_options(options);
  CalibrationJob job;
  job.options = options;
  std::sort(job.options.bits.begin(), job.options.bits.end());
  for (double& fraction : job.options.outliers) fraction = std::abs(fraction);  // -0 is 0
  std::sort(job.options.outliers.begin(), job.options.outliers.end());
  job.options.work = options.work_folder();

  Session& session = job.session;
  session = open_session(options.model, options.dtype, options.threads);
  session.windows = read_windows(job.options, session, progress);
  const std::vector<bool> cached = job.checkpoint_shape().cached;
  if (std::ranges::find(cached, true) == cached.end())
    throw base::InvalidInput(
        base::concat(session.folder.path.string(), ": no layer of this model has a cache"));
  job.options.samples = job.session.windows.samples;
  job.options.seqlen = job.session.windows.seqlen;
  check_lengths(job);
  job.warnings = judge_windows(job);
  fill_frame(job);
  job.identity_json = codebook_identity(job.frame);
  return job;
}

}  // namespace kvcal::calib
