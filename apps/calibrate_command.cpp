// kvcal calibrate: a model and a text in, a codebook out.
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <memory>
#include <vector>

#include "apps/codebook_view.h"
#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/page/page.h"
#include "apps/page/page_data.h"
#include "apps/progress.h"
#include "apps/signals.h"
#include "apps/sizes.h"
#include "base/error.h"
#include "base/file.h"
#include "calib/calibrate.h"

namespace kvcal::apps {
namespace {

using base::concat;
using base::WrongUsage;

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

struct CalibrateArguments {
  calib::CalibrationOptions options;
  Verbosity verbosity = Verbosity::kNormal;
  ProgressForm progress = ProgressForm::kText;
  JsonOutput json;
  OutputFile html;
};

using Strings = std::vector<std::string>;

std::vector<int> parse_bits(const Strings& values) {
  std::vector<int> bits;
  for (const std::string& part : split_list(values, "--bits"))
    bits.push_back(static_cast<int>(parse_count(part, "--bits", 0, kMost)));
  return bits;
}

std::vector<double> parse_outliers(const Strings& values) {
  std::vector<double> fractions;
  for (const std::string& part : split_list(values, "--outliers"))
    fractions.push_back(parse_number(part, "--outliers"));
  return fractions;
}

void add_inputs(CommandLine& line, calib::CalibrationOptions& options) {
  CLI::App& app = line.app();
  app.add_option(
         "-m,--model", options.model,
         "The model: a folder with config.json, a tokenizer and .safetensors files, or a name such as "
         "org/model in the local Hugging Face cache")
      ->type_name("DIR")
      ->group("What goes in and out");
  CLI::Option* text =
      app.add_option("-f,--text", options.texts,
                     "Texts like what the model will be used for: plain UTF-8, JSONL, or gzip of "
                     "either; - is standard input")
          ->type_name("FILE...")
          ->group("What goes in and out");
  app.add_option("--text-field", options.text_field,
                 "Of texts that are JSON: the member of each object that holds its text; \"text\" by default")
      ->type_name("NAME")
      ->group("What goes in and out");
  app.add_option("--tokens", options.tokens,
                 "Instead of text: token numbers, an integer array [samples, seqlen]; -1 at the end of a row "
                 "is padding")
      ->type_name("FILE.npy")
      ->excludes(text)
      ->group("What goes in and out");
  app.add_option("-o,--out", options.out, "The codebook to write")
      ->type_name("FILE.h5")
      ->group("What goes in and out");
  app.add_flag("--overwrite", options.overwrite, "Replace the file of --out where it exists")
      ->group("What goes in and out");
}

void add_sampling(CommandLine& line, calib::CalibrationOptions& options) {
  const std::string group = "What is sampled from the text";
  CLI::App& app = line.app();
  app.add_option_function<std::string>(
         "--samples,--num-calibration-samples",
         [&options](const std::string& text) { options.samples = parse_count(text, "--samples", 1, kMost); },
         "How many windows of the text; 16 by default")
      ->type_name("N")
      ->group(group);
  app.add_option_function<std::string>(
         "--seqlen,--max-seq-length",
         [&options](const std::string& text) { options.seqlen = parse_count(text, "--seqlen", 2, kMost); },
         "How many tokens in each window; 2048 by default, 8K is 8192")
      ->type_name("N")
      ->group(group);
  add_choice(app, "--bos", options.bos, calib::kBosPlaces,
             "Where the beginning-of-sequence token goes: each window, the first of each text, none; auto, "
             "the default, is what the tokenizer itself does")
      ->type_name("WHERE")
      ->group(group);
  app.add_flag("--parse-special,!--no-parse-special", options.parse_special,
               "Special tokens written in the text, such as <|eot_id|>, become their token (the default) or "
               "stay text")
      ->group(group);
  app.add_option_function<std::string>(
         "--seed", [&options](const std::string& text) { options.seed = parse_integer(text, "--seed"); },
         "Other than 0, the default: shifts where the windows start")
      ->type_name("N")
      ->group(group);
}

void add_method(CommandLine& line, calib::CalibrationOptions& options) {
  const std::string group = "What is fitted";
  CLI::App& app = line.app();
  app.add_option_function<Strings>(
         "--bits", [&options](const Strings& values) { options.bits = parse_bits(values); },
         "Bits of the datatypes, all from one run; 2,3,4 by default")
      ->type_name("LIST")
      ->group(group);
  app.add_option_function<Strings>(
         "--outliers", [&options](const Strings& values) { options.outliers = parse_outliers(values); },
         "Shares of values kept apart exactly; 0,0.01 by default: without, and with 1 %")
      ->type_name("LIST")
      ->group(group);
  app.add_option_function<std::string>(
         "--sinks",
         [&options](const std::string& text) {
           options.sinks = static_cast<int>(parse_count(text, "--sinks", 0, 1 << 20));
         },
         "First tokens of each window that stay exact and are left out of all statistics; 1 by default")
      ->type_name("N")
      ->group(group);
  app.add_flag("--ablation", options.ablation,
               "Also what KVQuant's ablation takes, for validate's int3-channel and "
               "nuq3-nosink: the fits once more with sinks counted")
      ->group(group);
  add_choice(app, "--value-scope", options.value_scope, calib::kValueScopes,
             "Thresholds of values are found over all channels of a token (token, the default), or for each "
             "kv head of it (head)")
      ->group(group);
  add_choice(app, "--sensitivity", options.sensitivity, calib::kSensitivities,
             "What an error weighs: fisher, the default: how much it changes the model's loss; none: all "
             "the same")
      ->group(group);
  add_choice(app, "--fisher-scale", options.fisher_scale, calib::kFisherScales,
             "range, the default: an error counts in the units of the values; none: in those of each "
             "channel's range, as in KVQuant's files")
      ->group(group);
  app.add_option_function<std::string>(
         "--ranges",
         [&options](const std::string& name) {
           options.ranges = base::parse_choice("--ranges", name, calib::kRanges);
         },
         "fitted, the default: a key channel's levels lie where the weighted error of each datatype is "
         "least; "
         "threshold, as in the paper and with --ablation: between its thresholds")
      ->type_name("NAME")
      ->group(group);
  add_choice(app, "--value-rotation", options.value_rotation, calib::kValueRotations,
             "none, the default; hadamard: values are turned within each kv head before they are quantised, "
             "and attention's output is turned back")
      ->group(group);
}

void add_machine(CommandLine& line, CalibrateArguments& arguments) {
  calib::CalibrationOptions& options = arguments.options;
  CLI::App& app = line.app();
  app.option_defaults()->group("How it runs");
  add_choice(app, "--dtype", options.dtype, calib::kDtypeChoices,
             "Arithmetic of the model: float32 or bfloat16; auto, the default, is bfloat16 where the CPU "
             "multiplies it natively");
  app.add_option("--device", options.device, "cpu, the default; this version has no other")
      ->type_name("NAME");
  line.add_threads(options.threads);
  app.add_option_function<std::string>(
         "--memory",
         [&options](const std::string& text) { options.memory_bytes = parse_memory(text, "--memory"); },
         "Memory that the whole process may use, such as 8GB; by default 80 % of what is free")
      ->type_name("SIZE");
  app.add_option("--work", options.work,
                 "Folder of the checkpoints from which the same command goes on after it was stopped; "
                 "OUT.work by default, "
                 "removed at the end")
      ->type_name("DIR");
  app.add_flag("--dry-run", options.dry_run,
               "Print what would be done, and the memory, disk and time it needs, and stop");
  line.add_json(arguments.json);
  line.add_html(arguments.html);
  line.add_verbosity(arguments.verbosity);
  line.add_progress(arguments.progress);
}

// A report must not replace the codebook, nor lie where the run removes its files.
void check_place(const std::string& option, const std::filesystem::path& file,
                 const calib::CalibrationOptions& options) {
  if (base::lies_in(file, options.out))
    throw WrongUsage(concat(option, " and --out name the same file; name two"));
  const std::filesystem::path work = options.work_folder();
  if (base::lies_in(file, work)) {
    throw WrongUsage(concat(option, " ", file.string(), " lies in the work folder ", work.string(),
                            "; name a file elsewhere"));
  }
}

void check_arguments(const CalibrateArguments& arguments) {
  const calib::CalibrationOptions& options = arguments.options;
  require(!options.model.empty(), "--model", "name the folder of the model, such as --model ./Llama-3.1-8B");
  require(!options.texts.empty() || !options.tokens.empty(), "--text",
          "name a text to calibrate on, such as --text prose.txt (or --tokens FILE.npy)");
  require(!options.out.empty(), "--out", "name the codebook to write, such as --out llama.h5");
  if (arguments.json.wanted() && !arguments.json.to_stdout())
    check_place("--json", arguments.json.file(), options);
  if (arguments.html.wanted()) check_place("--html", arguments.html.file(), options);
}

// Says what will be done before it is: on standard error; or, being the result of --dry-run, on standard
// output.
class PlanPrinter : public calib::PlanListener {
 public:
  PlanPrinter(ShownProgress& progress, bool to_stdout) : progress_(progress), to_stdout_(to_stdout) {}
  void on_plan(const calib::CalibrationPlan& plan) override {
    std::string text = plan_text(plan);
    if (to_stdout_) {
      print(text);
    } else {
      text.pop_back();
      progress_.info(text);
    }
  }

 private:
  ShownProgress& progress_;
  bool to_stdout_;
};

Json report_json(const calib::CalibrationReport& report, const calib::CalibrationOptions& options) {
  const auto finite = [](double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); };
  const formats::Codebook& codebook = report.codebook;
  const bool fitted = !codebook.layers.empty();
  Json layers = Json::array();
  for (const formats::LayerCodebook& layer : codebook.layers)
    layers.push_back(layer_json(layer, Arrays::kNone));
  return {{"model", report.plan.model.name},
          {"out", options.out.string()},
          {"dry_run", options.dry_run},
          {"already_done", report.already_done},
          {"content_sha256", fitted ? Json(codebook.content_sha256) : Json(nullptr)},
          {"samples", report.plan.calibration.samples},
          {"seqlen", report.plan.calibration.seqlen},
          {"tokens", report.plan.calibration.tokens},
          {"loss", fitted ? finite(codebook.calibration.loss) : Json(nullptr)},
          {"perplexity", fitted ? finite(std::exp(codebook.calibration.loss)) : Json(nullptr)},
          {"seconds",
           {{"total", finite(report.seconds)},
            {"forward", finite(report.forward_seconds)},
            {"backward", finite(report.backward_seconds)},
            {"fit", finite(report.fit_seconds)}}},
          {"summary", fitted ? summary_json(calib::summarise(codebook)) : Json(nullptr)},
          {"plan", plan_json(report.plan)},
          {"warnings", report.warnings},
          {"layers", std::move(layers)}};
}

PageData page_data(const calib::CalibrationReport& report, const calib::CalibrationOptions& options,
                   const Json& json) {
  return {.kind = "calibrate",
          .model = report.plan.model.name,
          .report = json,
          .codebook = page_codebook(report.codebook),
          .plans = page_plans(report.codebook, options.model)};
}

std::string report_text(const calib::CalibrationReport& report, const calib::CalibrationOptions& options) {
  const std::string head =
      report.already_done
          ? concat(options.out.string(), " is the finished result of this very run; nothing was done.\n\n")
          : concat("Wrote ", options.out.string(), " in ", format_duration(report.seconds), " (forward ",
                   format_duration(report.forward_seconds), ", backward ",
                   format_duration(report.backward_seconds), " with fits of ",
                   format_duration(report.fit_seconds), ").\n\n");
  return concat(head, summary_text(report.codebook, calib::summarise(report.codebook)), "\n",
                provenance_text(report.codebook, Fingerprints::kShort), "\nkvcal inspect --all ",
                options.out.string(), " prints every layer.\n");
}

}  // namespace

int run_calibrate(const std::vector<std::string>& arguments) {
  CalibrateArguments parsed;
  CommandLine line(
      "calibrate",
      "Runs a language model over calibration text, on a CPU if need be, and writes the codebook of its KV "
      "cache: "
      "2, 3 and 4 bits with and without outliers from one run. A run that was stopped goes on with the same "
      "command.",
      "  kvcal calibrate --model ./Llama-3.1-8B \\\n"
      "      --text prose.txt --out llama.h5 --html llama.html\n"
      "  kvcal calibrate --model ./Llama-3.1-8B \\\n"
      "      --text prose.txt --out llama.h5 --dry-run");
  add_inputs(line, parsed.options);
  add_sampling(line, parsed.options);
  add_method(line, parsed.options);
  add_machine(line, parsed);
  if (!line.parse(arguments)) return kDone;
  check_arguments(parsed);
  std::vector<std::filesystem::path> inputs = parsed.options.texts;
  inputs.push_back(parsed.options.tokens);
  // A folder counts with all that is in it; a name in the cache is none.
  if (std::filesystem::is_directory(parsed.options.model)) inputs.emplace_back(parsed.options.model);
  check_outputs(parsed.json, parsed.html, inputs);

  start_log(parsed.verbosity);
  handle_signals(OnSignal::kAsk);
  const calib::CalibrationOptions& options = parsed.options;
  const std::unique_ptr<ShownProgress> progress = make_progress(parsed.progress, parsed.verbosity);
  PlanPrinter plan(*progress, options.dry_run && !parsed.json.to_stdout());
  try {
    const calib::CalibrationReport report = calib::calibrate(options, *progress, &plan);
    progress->clear();
    const Json json = report_json(report, options);
    parsed.json.write(json);
    if (parsed.html.wanted() && !options.dry_run)
      parsed.html.write(page_html(page_data(report, options, json)));
    const bool text_wanted =
        !options.dry_run && !parsed.json.to_stdout() && parsed.verbosity != Verbosity::kQuiet;
    if (text_wanted) print(report_text(report, options) + page_line(parsed.html));
    if (options.dry_run && report.already_done && !parsed.json.to_stdout())
      print(
          concat(options.out.string(), " is the finished result of this very run; there is nothing to do\n"));
  } catch (const base::Interrupted& error) {
    progress->clear();
    log_error(concat("kvcal: interrupted by ", signal_name(error.signal()),
                     "; the same command goes on from ", options.work_folder().string()));
    return 128 + error.signal();
  }
  return kDone;
}

}  // namespace kvcal::apps
