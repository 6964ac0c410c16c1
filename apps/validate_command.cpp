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
#include "apps/validation_arguments.h"
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
constexpr const char* kInputs = "What goes in";

struct ValidateArguments {
  calib::ValidationOptions options;
  ValidationLimits limits;
  Verbosity verbosity = Verbosity::kNormal;
  ProgressForm progress = ProgressForm::kText;
  JsonOutput json;
  OutputFile html;
};

void add_codebook(CommandLine& line, calib::ValidationOptions& options) {
  line.app()
      .add_option(
          "-c,--codebook", options.codebook,
          "Its codebook, as kvcal calibrate writes it; without it only methods that need none are judged")
      ->type_name("FILE.h5")
      ->group(kInputs);
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
  add_validation_inputs(line, parsed.options, kInputs);
  add_codebook(line, parsed.options);
  add_validation_windows(line, parsed.options, "What is scored");
  add_measures(line, parsed);
  add_validation_machine(line, parsed.options);
  line.add_json(parsed.json);
  line.add_html(parsed.html);
  line.add_verbosity(parsed.verbosity);
  line.add_progress(parsed.progress);
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
