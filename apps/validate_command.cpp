// kvcal validate: what a codebook costs, beside other ways of storing the cache.
#include <algorithm>
#include <filesystem>
#include <limits>
#include <memory>
#include <vector>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/page/page.h"
#include "apps/page/page_data.h"
#include "apps/progress.h"
#include "apps/signals.h"
#include "apps/sizes.h"
#include "apps/validation_view.h"
#include "base/error.h"
#include "calib/validate.h"
#include "calib/validate/method_names.h"

namespace kvcal::apps {
namespace {

using base::concat;
using base::WrongUsage;
using Strings = std::vector<std::string>;

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

struct ValidateArguments {
  calib::ValidationOptions options;
  ValidationLimits limits;
  Verbosity verbosity = Verbosity::kNormal;
  ProgressForm progress = ProgressForm::kText;
  JsonOutput json;
  OutputFile html;
};

void add_inputs(CommandLine& line, calib::ValidationOptions& options) {
  const std::string group = "What goes in";
  CLI::App& app = line.app();
  app.add_option("-m,--model", options.model,
                 "The model: a folder, or a name such as org/model in the local Hugging Face cache")
      ->type_name("DIR")
      ->group(group);
  app.add_option(
         "-c,--codebook", options.codebook,
         "Its codebook, as kvcal calibrate writes it; without it only methods that need none are judged")
      ->type_name("FILE.h5")
      ->group(group);
  CLI::Option* text =
      app.add_option(
             "-f,--text", options.texts,
             "Texts that the codebook was not calibrated on: plain UTF-8, JSONL, or gzip of either; - is "
             "standard input")
          ->type_name("FILE...")
          ->group(group);
  app.add_option("--text-field", options.text_field,
                 "Of texts that are JSON: the member of each object that holds its text; \"text\" by default")
      ->type_name("NAME")
      ->group(group);
  app.add_option("--tokens", options.tokens,
                 "Instead of text: token numbers, an integer array [windows, seqlen]")
      ->type_name("FILE.npy")
      ->excludes(text)
      ->group(group);
  app.add_flag("--force", options.force, "Use a codebook that is another model's, such as a finetune's base")
      ->group(group);
}

void add_windows(CommandLine& line, calib::ValidationOptions& options) {
  const std::string group = "What is scored";
  CLI::App& app = line.app();
  app.add_option_function<std::string>(
         "--seqlen",
         [&options](const std::string& text) { options.seqlen = parse_count(text, "--seqlen", 2, kMost); },
         "How many tokens in each window; 2048 by default")
      ->type_name("N")
      ->group(group);
  app.add_option_function<std::string>(
         "--windows",
         [&options](const std::string& text) {
           options.all_windows = text == "all";
           if (!options.all_windows) options.windows = parse_count(text, "--windows", 1, kMost);
         },
         "How many consecutive windows, from the start of the text, or all; up to 16 by default, 2 with "
         "--kernels "
         "where they run on the CPU")
      ->type_name("N")
      ->group(group);
  add_choice(
      app, "--bos", options.bos, calib::kBosPlaces,
      "Where the beginning-of-sequence token goes: each window, first, none; auto, the default, is the "
      "protocol's")
      ->type_name("WHERE")
      ->group(group);
  add_choice(
      app, "--protocol", options.protocol, calib::kProtocols,
      "How windows are cut and scored, so that numbers compare with others': kvcal (the default), kvquant "
      "or llama.cpp")
      ->group(group);
  app.add_flag("--parse-special,!--no-parse-special", options.parse_special,
               "Special tokens written in the text become their token (the default) or stay text")
      ->group(group);
}

std::string methods_help() {
  std::string text = "What is judged beside fp; by default int, nf and the codebook's nuq. There are";
  for (const calib::MethodNames& family : calib::method_names())
    text += concat(text.ends_with("are") ? " " : "; ", family.names);
  return text;
}

void add_measures(CommandLine& line, ValidateArguments& arguments) {
  const std::string group = "What is measured";
  CLI::App& app = line.app();
  calib::ValidationOptions& options = arguments.options;
  app.add_option_function<Strings>(
         "--methods",
         [&options](const Strings& values) { options.methods = split_list(values, "--methods"); },
         methods_help())
      ->type_name("LIST")
      ->group(group);
  app.add_option_function<std::string>(
         "--generate",
         [&options](const std::string& text) {
           options.generate = parse_count(text, "--generate", 1, kMost);
         },
         "Also what decoding costs: the model writes so many tokens after each window's beginning, and every "
         "method reads them one by one from its stored past")
      ->type_name("N")
      ->group(group);
  app.add_option_function<Strings>(
         "--passkey",
         [&options](const Strings& values) {
           for (const std::string& part : split_list(values, "--passkey"))
             options.passkey.push_back(parse_count(part, "--passkey", 1, kMost));
         },
         "Also whether a number hidden in a text is found again, in prompts of these lengths in tokens, such "
         "as 1024,4096,16384")
      ->type_name("LIST")
      ->group(group);
  app.add_flag("--kernels", options.kernels,
               "Also each of the codebook's methods in an engine's pages (-paged), and written and read "
               "there by the "
               "CUDA kernels (-kernels): on the GPU, or where there is none lane by lane on the CPU, for "
               "short runs")
      ->group(group);
  app.add_flag(
         "--per-layer-kl", options.per_layer_kl,
         "Also the divergence that each layer's keys alone, and its values alone, cause: half a pass each")
      ->group(group);
  const auto limit = [&app, &group](const char* name, std::optional<double>& target, const char* text) {
    app.add_option_function<std::string>(
           name,
           [name, &target](const std::string& value) {
             target = parse_number(value, name);
             if (*target < 0) throw WrongUsage(concat(name, " is ", value, ": the least is 0"));
           },
           text)
        ->type_name("X")
        ->group(group);
  };
  limit("--max-kld", arguments.limits.max_kld,
        "End with 3 where a method of --methods (without it: every method) has a mean KL divergence above "
        "this");
  limit("--max-ppl-delta", arguments.limits.max_ppl_delta, "The same for the perplexity above fp's");
}

void add_machine(CommandLine& line, ValidateArguments& arguments) {
  calib::ValidationOptions& options = arguments.options;
  CLI::App& app = line.app();
  app.option_defaults()->group("How it runs");
  add_choice(
      app, "--dtype", options.dtype, calib::kDtypeChoices,
      "Arithmetic of the model: float32 or bfloat16; auto, the default, is bfloat16 where the CPU multiplies "
      "it natively");
  app.add_option("--device", options.device, "cpu, the default; this version has no other")
      ->type_name("NAME");
  line.add_threads(options.threads);
  app.add_option_function<std::string>(
         "--memory",
         [&options](const std::string& text) { options.memory_bytes = parse_memory(text, "--memory"); },
         "Memory that the whole process may use, such as 8GB; by default 80 % of what is free")
      ->type_name("SIZE");
  app.add_option("--work", options.scratch,
                 "Folder for hidden states that memory has no room for; nothing stays there")
      ->type_name("DIR");
  line.add_json(arguments.json);
  line.add_html(arguments.html);
  line.add_verbosity(arguments.verbosity);
  line.add_progress(arguments.progress);
}

void check_arguments(const ValidateArguments& arguments) {
  const calib::ValidationOptions& options = arguments.options;
  require(!options.model.empty(), "--model", "name the folder of the model, such as --model ./Llama-3.1-8B");
  require(
      !options.texts.empty() || !options.tokens.empty(), "--text",
      "name a text that the codebook was not calibrated on, such as --text other.txt (or --tokens FILE.npy)");
  std::vector<std::filesystem::path> inputs = options.texts;
  inputs.push_back(options.tokens);
  inputs.push_back(options.codebook);
  if (std::filesystem::is_directory(options.model)) inputs.emplace_back(options.model);
  check_outputs(arguments.json, arguments.html, inputs);
}

class PlanPrinter final : public calib::ValidationListener {
 public:
  explicit PlanPrinter(ShownProgress& progress) : progress_(progress) {}
  void on_plan(const calib::ValidationPlan& plan) override {
    std::string text = plan_text(plan);
    text.pop_back();
    progress_.info(text);
  }

 private:
  ShownProgress& progress_;
};

PageData page_data(const ValidateArguments& arguments, const Json& report) {
  const calib::ValidationOptions& options = arguments.options;
  PageData page{.kind = "validate", .model = report["model"], .report = report};
  if (options.codebook.empty()) {
    calib::CachePlanOptions plan;
    plan.gpu_memory_bytes = kPageGpuMemory;
    page.plans = page_plans(calib::read_cache_model(options.model), plan);
    return page;
  }
  const formats::Codebook codebook = formats::read_codebook(options.codebook);
  page.codebook = page_codebook(codebook);
  page.plans = page_plans(codebook, options.model);
  return page;
}

// A method that was named must be within the limits; without names it is enough that one is.
bool limits_met(const ValidateArguments& arguments, const calib::ValidationReport& report) {
  if (!arguments.limits.any()) return true;
  if (arguments.options.methods.empty()) return smallest_within(report, arguments.limits) != nullptr;
  return std::ranges::all_of(report.methods, [&](const calib::MethodReport& method) {
    return method.name == calib::kFullPrecision || arguments.limits.met_by(method);
  });
}

}  // namespace

int run_validate(const Strings& arguments) {
  ValidateArguments parsed;
  CommandLine line(
      "validate",
      "Shows what a codebook costs: perplexity, KL divergence and agreement of the model with its cache "
      "stored by each method, all in one pass over the weights, and the error layer by layer. What it "
      "measures has been through the packed bytes.",
      "  kvcal validate --model ./Llama-3.1-8B \\\n"
      "      --codebook llama.h5 --text other.txt --html page.html\n"
      "  kvcal validate --model ./Llama-3.1-8B \\\n"
      "      --codebook llama.h5 --text other.txt \\\n"
      "      --methods nuq3-1% --max-kld 0.02");
  add_inputs(line, parsed.options);
  add_windows(line, parsed.options);
  add_measures(line, parsed);
  add_machine(line, parsed);
  if (!line.parse(arguments)) return kDone;
  check_arguments(parsed);

  start_log(parsed.verbosity);
  handle_signals(OnSignal::kAsk);
  const std::unique_ptr<ShownProgress> progress = make_progress(parsed.progress, parsed.verbosity);
  PlanPrinter plan(*progress);
  try {
    const calib::ValidationReport report = calib::validate(parsed.options, *progress, &plan);
    progress->clear();
    const Json json = report_json(report, parsed.limits);
    parsed.json.write(json);
    if (parsed.html.wanted()) parsed.html.write(page_html(page_data(parsed, json)));
    if (!parsed.json.to_stdout()) print(report_text(report, parsed.limits) + page_line(parsed.html));
    return limits_met(parsed, report) ? kDone : kLimitNotMet;
  } catch (const base::Interrupted& error) {
    progress->clear();
    log_error(concat("kvcal: interrupted by ", signal_name(error.signal()), "; nothing was written"));
    return 128 + error.signal();
  }
}

}  // namespace kvcal::apps
