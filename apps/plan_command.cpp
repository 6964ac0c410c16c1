// kvcal plan: what a context costs in memory, and what fits, from a model's config.json alone.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/cache_plan_view.h"
#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/log.h"
#include "apps/page/page.h"
#include "apps/page/page_data.h"
#include "apps/sizes.h"
#include "base/error.h"
#include "calib/cache_plan.h"
#include "formats/codebook.h"

namespace kvcal::apps {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

struct PlanArguments {
  std::string model;
  std::filesystem::path codebook;
  calib::CachePlanOptions options;
  std::optional<std::int64_t> weights_bytes;
  std::int64_t gpus = 1;
  JsonOutput json;
  OutputFile html;
};

void add_options(CommandLine& line, PlanArguments& arguments) {
  CLI::App& app = line.app();
  app.add_option(
         "-m,--model", arguments.model,
         "The model: a folder or its config.json alone, or a name such as org/model in the local Hugging "
         "Face cache; weights are not needed")
      ->type_name("DIR");
  app.add_option("-c,--codebook", arguments.codebook,
                 "Its codebook: whose datatypes and recipe are weighed, with or without --model")
      ->type_name("FILE.h5");
  line.add_count("--context", arguments.options.context, 1, kMost,
                 "Tokens of each sequence, such as 32K or 1M; 128K by default. K is 1024");
  line.add_count("--batch", arguments.options.batch, 1, 1 << 20, "Sequences at a time; 1 by default");
  app.add_option_function<std::string>(
         "--gpu-memory",
         [&arguments](const std::string& text) {
           arguments.options.gpu_memory_bytes = parse_memory(text, "--gpu-memory");
         },
         "What weights and cache may use of each GPU, such as 80GB; tells what is left, and the largest "
         "context")
      ->type_name("SIZE");
  line.add_count("--gpus", arguments.gpus, 1, 1 << 16,
                 "GPUs that share out the kv heads and the weights (tensor parallelism); 1 by default");
  app.add_option_function<std::string>(
         "--weights",
         [&arguments](const std::string& text) { arguments.weights_bytes = parse_memory(text, "--weights"); },
         "What the weights take, such as 3.9GB, where they are held quantised; by default 16 bits a "
         "parameter")
      ->type_name("SIZE");
  app.add_option_function<std::vector<std::string>>(
         "--methods",
         [&arguments](const std::vector<std::string>& values) {
           arguments.options.methods = split_list(values, "--methods");
         },
         "Ways of storing the cache, as validate has them; by default fp, fp8 and nuq4, 3 and 2, each with "
         "and "
         "without 1 % outliers, by token and in pages")
      ->type_name("LIST");
  line.add_json(arguments.json);
  line.add_html(arguments.html);
}

// Of a model and a codebook that were both given.
void check_same_cache(const PlanArguments& arguments, const calib::CacheShape& model,
                      const calib::CacheShape& codebook) {
  if (arguments.model.empty()) return;
  const auto tensors = [](const calib::CachedLayer& layer) { return std::pair(layer.tensors, layer.window); };
  if (std::ranges::equal(model.layers, codebook.layers, {}, tensors, tensors)) return;
  throw base::InvalidInput(base::concat(arguments.codebook.string(), " is of ", codebook.model,
                                        ", whose layers cache other tensors than those of ", arguments.model,
                                        "; give one of both"));
}

calib::CacheModel read_model(const PlanArguments& arguments) {
  calib::CacheModel model;
  model.weights.source = "unknown";
  if (!arguments.model.empty()) model = calib::read_cache_model(arguments.model);
  if (!arguments.codebook.empty()) {
    const std::int64_t positions = model.cache.max_positions;
    const formats::Codebook codebook = formats::read_codebook(arguments.codebook);
    check_same_cache(arguments, model.cache, calib::cache_shape(codebook));
    model.cache = calib::cache_shape(codebook);
    model.cache.max_positions = positions;
  }
  if (!arguments.weights_bytes) return model;
  model.weights.bytes = arguments.weights_bytes;
  model.weights.dtype.clear();
  model.weights.source = "option";
  return model;
}

}  // namespace

int run_plan(const std::vector<std::string>& arguments) {
  PlanArguments parsed;
  CommandLine line(
      "plan",
      "Says what a context costs: the bytes of the KV cache by each method beside the weights, and which "
      "context fits into a GPU. Reads config.json only.",
      "  kvcal plan --model ./Llama-3.1-8B --context 1M \\\n      --gpu-memory 80GB");
  add_options(line, parsed);
  if (!line.parse(arguments)) return kDone;
  require(!parsed.model.empty() || !parsed.codebook.empty(), "--model",
          "name the folder of the model or its config.json, such as --model ./Llama-3.1-8B");
  check_outputs(parsed.json, parsed.html, {parsed.model, parsed.codebook});
  parsed.options.gpus = static_cast<int>(parsed.gpus);

  start_log(Verbosity::kNormal);
  const calib::CacheModel model = read_model(parsed);
  const calib::CachePlan plan = calib::plan_cache(model, parsed.options);
  for (const std::string& warning : plan.warnings) log_warning(warning);
  parsed.json.write(cache_plan_json(plan));
  if (parsed.html.wanted()) {
    parsed.html.write(
        page_html({.kind = "plan", .model = plan.shape.model, .plans = page_plans(model, parsed.options)}));
  }
  if (!parsed.json.to_stdout()) print(cache_plan_text(plan) + page_line(parsed.html));
  return kDone;
}

}  // namespace kvcal::apps
