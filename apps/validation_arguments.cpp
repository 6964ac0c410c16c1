#include "apps/validation_arguments.h"

#include <cstdint>
#include <limits>

#include "apps/sizes.h"
#include "apps/validation_view.h"

namespace kvcal::apps {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

}  // namespace

void add_validation_inputs(CommandLine& line, calib::ValidationOptions& options, const std::string& group) {
  CLI::App& app = line.app();
  app.add_option("-m,--model", options.model,
                 "The model: a folder, or a name such as org/model in the local Hugging Face cache")
      ->type_name("DIR")
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

void add_validation_windows(CommandLine& line, calib::ValidationOptions& options, const std::string& group) {
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

void add_validation_machine(CommandLine& line, calib::ValidationOptions& options) {
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
}

void PlanPrinter::on_plan(const calib::ValidationPlan& plan) {
  std::string text = plan_text(plan);
  text.pop_back();
  progress_.info(text);
}

}  // namespace kvcal::apps
