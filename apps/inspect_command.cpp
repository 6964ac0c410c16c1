// kvcal inspect: what is in a codebook and where it comes from.
#include <algorithm>
#include <filesystem>
#include <optional>
#include <vector>

#include "apps/codebook_view.h"
#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/page/page.h"
#include "apps/page/page_data.h"
#include "apps/sizes.h"
#include "base/error.h"
#include "formats/codebook.h"

namespace kvcal::apps {
namespace {

using base::concat;

const formats::LayerCodebook& find_layer(const formats::Codebook& codebook, std::int64_t index,
                                         const std::filesystem::path& file) {
  for (const formats::LayerCodebook& layer : codebook.layers) {
    if (layer.index == index) return layer;
  }
  std::string held = "none";
  if (!codebook.layers.empty())
    held = concat(codebook.layers.front().index, " to ", codebook.layers.back().index);
  throw base::InvalidInput(concat(file.string(), " has no layer ", index, "; --layer may be ", held));
}

}  // namespace

int run_inspect(const std::vector<std::string>& arguments) {
  std::filesystem::path file;
  std::int64_t layer = -1;
  bool all = false;
  JsonOutput json;
  OutputFile html;
  CommandLine line("inspect",
                   "Checks a codebook file and prints what matters of it: bits, the cache's size, the "
                   "estimated cost, whether the "
                   "sample was enough, the weakest layers, and where it comes from.",
                   "  kvcal inspect llama.h5\n  kvcal inspect llama.h5 --layer 3");
  line.app().add_option("FILE", file, "The codebook, as kvcal calibrate writes it")->type_name(" ");
  line.add_count("-l,--layer", layer, 0, 9999,
                 "Print all of this layer: thresholds, centroids, Q-Norm; layers count from 0");
  line.app().add_flag("-a,--all", all, "Print every layer's tables, and fingerprints whole");
  line.add_json(json);
  line.add_html(html);
  if (!line.parse(arguments)) return kDone;
  require(!file.empty(), "FILE", "name the codebook to look at, such as kvcal inspect llama.h5");
  check_outputs(json, html, {file});

  const formats::Codebook codebook = formats::read_codebook(file);
  const calib::CodebookSummary summary = calib::summarise(codebook);
  const formats::LayerCodebook* chosen = layer >= 0 ? &find_layer(codebook, layer, file) : nullptr;
  if (json.wanted()) {
    Json result = provenance_json(codebook);
    result["summary"] = summary_json(summary);
    result["layers"] = Json::array();
    for (const formats::LayerCodebook& one : codebook.layers) {
      if (chosen == nullptr || chosen == &one) result["layers"].push_back(layer_json(one, Arrays::kNumbers));
    }
    json.write(result);
  }
  if (html.wanted()) {
    html.write(page_html({.kind = "inspect",
                          .model = codebook.model.name,
                          .codebook = page_codebook(codebook),
                          .plans = page_plans(codebook, "")}));
  }
  if (!json.to_stdout()) {
    const std::string layers = chosen != nullptr ? layer_text(*chosen)
                               : all             ? layers_text(codebook, summary)
                                                 : "";
    print(summary_text(codebook, summary) + "\n" +
          provenance_text(codebook, all ? Fingerprints::kWhole : Fingerprints::kShort) +
          (layers.empty() ? "" : "\n" + layers) + page_line(html));
  }
  return kDone;
}

}  // namespace kvcal::apps
