// kvcal allocate: which datatype each tensor gets under a budget of bytes.
#include <algorithm>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "apps/allocation_view.h"
#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/progress.h"
#include "apps/signals.h"
#include "apps/sizes.h"
#include "apps/terminal.h"
#include "apps/validation_arguments.h"
#include "apps/validation_view.h"
#include "base/error.h"
#include "calib/allocate.h"

namespace kvcal::apps {
namespace {

using base::concat;
using base::WrongUsage;
using Strings = std::vector<std::string>;

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

struct AllocateArguments {
  calib::AllocationOptions options;
  bool all = false;
  Verbosity verbosity = Verbosity::kNormal;
  ProgressForm progress = ProgressForm::kText;
  JsonOutput json;
};

void add_budget(CommandLine& line, AllocateArguments& arguments) {
  CLI::App& app = line.app();
  calib::AllocationOptions& options = arguments.options;
  app.add_option("FILE", options.codebook, "The codebook, as kvcal calibrate writes it")->type_name(" ");
  app.option_defaults()->group("The budget");
  app.add_option_function<std::string>(
         "-b,--bits-per-value",
         [&options](const std::string& text) {
           options.bits_per_value = parse_number(text, "--bits-per-value");
         },
         "All that is stored of a sequence, by number: codes, scales and outliers, such as 3.2")
      ->type_name("B");
  app.add_option_function<Strings>(
         "--bytes-at",
         [&options](const Strings& texts) {
           options.context = parse_count(texts[0], "--bytes-at", 1, kMost);
           options.bytes = parse_size(texts[1], "--bytes-at");
         },
         "Instead: what the cache of a sequence of so many tokens may take, such as 128K 8GB")
      ->type_name("CONTEXT SIZE")
      ->expected(2);
  app.add_flag("--paged", options.paged,
               "Count bytes as in a serving engine's pages, which the kernels write; else token by token");
  app.option_defaults()->group("What is left open");
  app.add_option_function<std::string>(
         "--min-bits",
         [&options](const std::string& text) {
           options.min_bits = static_cast<int>(parse_count(text, "--min-bits", 2, 4));
         },
         "Of every tensor, 2 to 4; 2 by default")
      ->type_name("N");
  app.add_option_function<Strings>(
         "--keep-layers",
         [&options](const Strings& values) {
           for (const std::string& part : split_list(values, "--keep-layers"))
             options.keep_layers.push_back(static_cast<int>(parse_count(part, "--keep-layers", 0, 9999)));
         },
         "Layers that stay in 16 bits, such as 0,1; none by default")
      ->type_name("LIST");
  app.option_defaults()->group("What comes out");
  app.add_option("-o,--out", options.out,
                 "The codebook with its recipe; by default FILE itself, replaced as a whole")
      ->type_name("FILE.h5");
  app.add_flag("-a,--all", arguments.all, "Print every tensor, not only how many got what");
}

void add_measure(CommandLine& line, AllocateArguments& arguments) {
  calib::AllocationOptions& options = arguments.options;
  line.app().option_defaults()->group("Measured instead of estimated");
  line.app().add_flag(
      "--measure-all", options.measure_all,
      "Measure every datatype of each tensor: takes as often as long, and is nearer to the truth where "
      "few bits cost much. Without it one is measured, and the others follow from the file's objectives");
  add_validation_inputs(line, options.measured, "Measured instead of estimated");
  add_validation_windows(line, options.measured, "Measured instead of estimated");
  add_validation_machine(line, options.measured);
  line.add_json(arguments.json);
  line.add_verbosity(arguments.verbosity);
  line.add_progress(arguments.progress);
}

void check_arguments(const AllocateArguments& arguments) {
  const calib::AllocationOptions& options = arguments.options;
  require(!options.codebook.empty(), "FILE",
          "name the codebook, such as kvcal allocate llama.h5 --bits-per-value 3.2");
  const calib::ValidationOptions& measured = options.measured;
  const bool has_text = !measured.texts.empty() || !measured.tokens.empty();
  if (has_text && measured.model.empty())
    throw WrongUsage("--text says what to measure on; name the model with --model");
  if (!measured.model.empty())
    require(has_text, "--text",
            "name a text to measure on (or --tokens FILE.npy), or leave out --model to estimate");
  std::vector<std::filesystem::path> inputs = measured.texts;
  inputs.push_back(measured.tokens);
  inputs.push_back(options.codebook);
  if (std::filesystem::is_directory(measured.model)) inputs.emplace_back(measured.model);
  check_outputs(arguments.json, {}, inputs);
}

}  // namespace

int run_allocate(const Strings& arguments) {
  AllocateArguments parsed;
  CommandLine line("allocate",
                   "Chooses bits and outliers for each layer's keys and values so that a cache of a given "
                   "size costs the least "
                   "divergence, exactly. Writes the choice into the codebook, where validate, plan and "
                   "export find it as the method "
                   "recipe.",
                   "  kvcal allocate llama.h5 --bits-per-value 3.2\n"
                   "  kvcal allocate llama.h5 --bytes-at 128K 12GB \\\n"
                   "      --model ./Llama-3.1-8B --text other.txt");
  add_budget(line, parsed);
  add_measure(line, parsed);
  if (!line.parse(arguments)) return kDone;
  check_arguments(parsed);

  start_log(parsed.verbosity);
  handle_signals(OnSignal::kAsk);
  const std::unique_ptr<ShownProgress> progress = make_progress(parsed.progress, parsed.verbosity);
  PlanPrinter plan(*progress);
  try {
    const calib::Allocation allocation = calib::allocate(parsed.options, *progress, &plan);
    progress->clear();
    parsed.json.write(allocation_json(allocation));
    if (!parsed.json.to_stdout()) print(allocation_text(allocation, parsed.all));
    return kDone;
  } catch (const base::Interrupted& error) {
    progress->clear();
    log_error(concat("kvcal: interrupted by ", signal_name(error.signal()), "; nothing was written"));
    return 128 + error.signal();
  }
}

}  // namespace kvcal::apps
