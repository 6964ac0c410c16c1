// kvcal diff: what changed between two codebooks.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/sizes.h"
#include "apps/terminal.h"
#include "apps/text_table.h"
#include "base/error.h"
#include "formats/codebook.h"
#include "formats/codebook_diff.h"

namespace kvcal::apps {
namespace {

using base::concat;
using formats::Difference;
using formats::LayerDifference;

struct Options {
  std::filesystem::path left, right;
  double tolerance = 0;
  bool all = false;  ///< print every difference, not the summary
  JsonOutput json;
};

// What both outputs are made of.
struct Report {
  std::string left_model, right_model;
  formats::ModelMatch model;
  std::vector<Difference> differences;
  std::vector<LayerDifference> layers;
  std::optional<double> largest;
};

Report compare(const Options& options) {
  const formats::Codebook left = formats::read_codebook(options.left);
  const formats::Codebook right = formats::read_codebook(options.right);
  Report report;
  report.left_model = left.model.name;
  report.right_model = right.model.name;
  report.model = formats::match_models(left, right);
  report.differences = formats::diff_codebooks(left, right, options.tolerance);
  report.layers = formats::summarise_layers(report.differences);
  const Difference* largest = formats::largest_difference(report.differences);
  if (largest != nullptr) report.largest = largest->magnitude;
  return report;
}

Json number_json(std::optional<double> value) {
  return value && std::isfinite(*value) ? Json(*value) : Json(nullptr);
}

Json value_json(const formats::DifferenceValue& value) {
  if (const auto* number = std::get_if<double>(&value)) return *number;
  if (const auto* integer = std::get_if<std::int64_t>(&value)) return *integer;
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  return nullptr;
}

Json difference_json(const Difference& difference) {
  return {{"path", difference.path},
          {"index", difference.index ? Json(*difference.index) : Json(nullptr)},
          {"left", value_json(difference.left)},
          {"right", value_json(difference.right)},
          {"magnitude", number_json(difference.magnitude)}};
}

Json summary_json(const Report& report) {
  Json layers = Json::array();
  for (const LayerDifference& layer : report.layers) {
    layers.push_back({{"layer", layer.layer},
                      {"key_thresholds", number_json(layer.key_thresholds)},
                      {"key_centroids", number_json(layer.key_centroids)},
                      {"value_centroids", number_json(layer.value_centroids)}});
  }
  return {{"model", {{"config", report.model.config}, {"weights", report.model.weights}}},
          {"largest", number_json(report.largest)},
          {"layers", std::move(layers)}};
}

Json to_json(const Report& report, const Options& options) {
  Json list = Json::array();
  for (const Difference& difference : report.differences) list.push_back(difference_json(difference));
  return {{"left", options.left.string()},     {"right", options.right.string()},
          {"tolerance", options.tolerance},    {"same", report.differences.empty()},
          {"same_model", report.model.same()}, {"summary", summary_json(report)},
          {"differences", std::move(list)}};
}

std::string value_text(const formats::DifferenceValue& value) {
  constexpr int kDigitsOfFloat = 9;  // tells any two float32 apart
  if (const auto* number = std::get_if<double>(&value)) return format_number(*number, kDigitsOfFloat);
  if (const auto* integer = std::get_if<std::int64_t>(&value)) return std::to_string(*integer);
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  return "absent";
}

std::string place_text(const Difference& difference) {
  return difference.index ? concat(difference.path, " [", *difference.index, "]") : difference.path;
}

// Of --all: whole, on one line, however long.
std::string difference_line(const Difference& difference) {
  const std::string magnitude =
      std::isfinite(difference.magnitude) ? concat(" (", format_number(difference.magnitude, 3), ")") : "";
  return concat(place_text(difference), ": ", value_text(difference.left), " -> ",
                value_text(difference.right), magnitude, "\n");
}

// Of the summary, where the beginning of a checksum is enough.
std::string short_difference_line(Difference difference) {
  constexpr std::size_t kSha256 = 64, kShown = 8;
  for (formats::DifferenceValue* value : {&difference.left, &difference.right}) {
    auto* text = std::get_if<std::string>(value);
    if (difference.path.ends_with("sha256") && text != nullptr && text->size() == kSha256)
      *text = text->substr(0, kShown) + "...";
  }
  return hanging(difference_line(difference));
}

std::string plural(std::size_t count, const std::string& noun) {
  return concat(count, " ", noun, count == 1 ? "" : "s");
}

std::string count_line(const Report& report, double tolerance) {
  return concat(plural(report.differences.size(), "difference"),
                tolerance > 0 ? concat(" (tolerance ", format_number(tolerance, 6), ")") : "",
                report.largest ? concat(", the largest ", format_number(*report.largest, 3)) : "", "\n");
}

std::string largest_line(const Report& report) {
  const Difference* largest = formats::largest_difference(report.differences);
  return largest == nullptr ? "" : hanging(concat("largest in ", place_text(*largest))) + "\n";
}

// Names and fingerprint of the weights, which the line about the model has told.
bool is_told_by_model_line(const Difference& difference) {
  return difference.path == "/model@name" || difference.path == "/model@weights_sha256";
}

std::string provenance_lines(const Report& report) {
  std::string text;
  if (!report.model.weights) {
    text = hanging(concat("the same architecture, other weights: a finetune, or another checkpoint (",
                          report.left_model, " -> ", report.right_model, ")")) +
           "\n";
  }
  for (const Difference& difference : report.differences) {
    if (difference.layer || (!report.model.weights && is_told_by_model_line(difference))) continue;
    text += short_difference_line(difference);
  }
  return text;
}

// Layers, tensors, fractions and bits that one of the files lacks: no number of the table tells of them.
std::string one_sided_line(const Report& report) {
  const Difference* first = nullptr;
  std::size_t count = 0;
  for (const Difference& difference : report.differences) {
    const bool one_sided = difference.left.index() == 0 || difference.right.index() == 0;
    if (!difference.layer || !one_sided) continue;
    if (++count == 1) first = &difference;
  }
  if (first == nullptr) return "";
  return hanging(concat("in one of the files only: ", first->path,
                        count > 1 ? concat(" and ", count - 1, " more (--all lists them)") : "")) +
         "\n";
}

std::string cell(std::optional<double> magnitude) {
  return magnitude ? format_number(*magnitude, 3) : "-";
}

std::string layers_table(std::vector<LayerDifference> layers) {
  constexpr std::size_t kMostRows = 8;  // a screen holds them beside the lines about the provenance
  const std::size_t differing = layers.size();
  std::erase_if(layers, [](const LayerDifference& layer) { return !layer.largest(); });
  std::ranges::stable_sort(layers, std::ranges::greater(), &LayerDifference::largest);
  TextTable table({{"layer"}, {"key thresholds"}, {"key centroids"}, {"value centroids"}});
  for (const LayerDifference& layer : std::span(layers).first(std::min(layers.size(), kMostRows))) {
    table.add_row({std::to_string(layer.layer), cell(layer.key_thresholds), cell(layer.key_centroids),
                   cell(layer.value_centroids)});
  }
  std::string text;
  if (!layers.empty()) text = concat(bold("largest relative differences"), "\n", table.text());
  if (layers.size() > kMostRows) {
    text += concat("and ", plural(layers.size() - kMostRows, "more layer"), ", none above ",
                   cell(layers[kMostRows].largest()), "\n");
  }
  if (differing > layers.size()) {
    text += hanging(concat(plural(differing - layers.size(), layers.empty() ? "layer" : "more layer"),
                           " with other differences only (--all lists them)")) +
            "\n";
  }
  return text;
}

std::string another_model_line(const Report& report) {
  return hanging(concat("another model: ", report.left_model, " and ", report.right_model, " differ in ",
                        report.model.weights ? "config" : "config and weights")) +
         "\n";
}

std::string to_text(const Report& report, const Options& options) {
  if (report.differences.empty()) {
    return concat("the same",
                  options.tolerance > 0 ? concat(" within ", format_number(options.tolerance, 6)) : "", "\n");
  }
  if (options.all) {
    std::string text;
    for (const Difference& difference : report.differences) text += difference_line(difference);
    return text + count_line(report, options.tolerance);
  }
  if (!report.model.config) return another_model_line(report);
  return provenance_lines(report) + one_sided_line(report) + layers_table(report.layers) +
         largest_line(report) + count_line(report, options.tolerance);
}

void add_options(CommandLine& line, Options& options) {
  line.app().add_option("A", options.left, "A codebook")->type_name(" ");
  line.app().add_option("B", options.right, "The codebook to compare it with")->type_name(" ");
  line.app()
      .add_option_function<std::string>(
          "-t,--tolerance",
          [&options](const std::string& text) {
            options.tolerance = parse_number(text, "--tolerance");
            if (options.tolerance < 0) {
              throw base::WrongUsage(concat("--tolerance is ", text, ": the least is 0"));
            }
          },
          "Measured numbers count as the same where they differ by at most this share of the largest "
          "in their array; 0 by default")
      ->type_name("X");
  line.app().add_flag("--all", options.all, "Print every difference, one a line, in place of the summary");
  line.add_json(options.json);
}

}  // namespace

int run_diff(const std::vector<std::string>& arguments) {
  Options options;
  CommandLine line("diff",
                   "Prints what changed from codebook A to codebook B: where they come from, then the layers "
                   "that differ most. Of another model, it says only that. Ends with 0 where they are the "
                   "same and with 3 where they differ.",
                   "  kvcal diff base.h5 finetune.h5 --tolerance 0.05");
  add_options(line, options);
  if (!line.parse(arguments)) return kDone;
  require(!options.left.empty() && !options.right.empty(), "A or B",
          "name two codebooks, such as kvcal diff old.h5 new.h5");
  options.json.check({options.left, options.right});

  const Report report = compare(options);
  options.json.write(to_json(report, options));
  if (!options.json.to_stdout()) print(to_text(report, options));
  return report.differences.empty() ? kDone : kLimitNotMet;
}

}  // namespace kvcal::apps
