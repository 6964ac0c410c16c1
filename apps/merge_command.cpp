// kvcal merge: one codebook from those of several runs.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/log.h"
#include "apps/sizes.h"
#include "apps/terminal.h"
#include "apps/text_table.h"
#include "base/error.h"
#include "calib/merge.h"

namespace kvcal::apps {
namespace {

using base::concat;
using Strings = std::vector<std::string>;

struct MergeArguments {
  calib::MergeOptions options;
  JsonOutput json;
};

std::string percent(double share) {
  return std::isfinite(share) ? concat(format_number(100 * share, 3), " %") : "-";
}

// Of the runs' own; no number where they leave nothing.
double relative(const calib::MergedError& error) {
  if (error.excess == 0) return 0;
  return error.own > 0 ? error.excess / error.own : std::numeric_limits<double>::quiet_NaN();
}

std::string runs_text(const calib::MergeReport& report, std::span<const std::filesystem::path> files) {
  TextTable table({{"codebook", Align::kLeft}, {"windows"}, {"tokens"}, {"loss"}});
  const auto add = [&](const std::string& name, const formats::CalibrationInfo& info) {
    table.add_row({name, std::to_string(info.samples), format_count(info.tokens), format_number(info.loss)});
  };
  for (std::size_t i = 0; i < files.size(); ++i) add(files[i].string(), report.runs[i]);
  add("merged", report.codebook.calibration);
  return table.text();
}

std::string errors_text(const calib::MergeReport& report) {
  TextTable table({{"datatype", Align::kLeft}, {"error of the runs' own"}, {"of the merged"}, {"more"}});
  for (const calib::MergedError& error : report.errors) {
    table.add_row({error.datatype.name(), format_number(error.own), format_number(error.own + error.excess),
                   percent(relative(error))});
  }
  return table.text();
}

std::string nearness_text(const calib::MergeReport& report) {
  double spread = 0, counted = 0;
  const calib::TensorNearness* widest = nullptr;
  for (const calib::TensorNearness& one : report.tensors) {
    if (one.nearness.threshold_spread == 0) continue;
    spread += one.nearness.threshold_spread;
    ++counted;
    if (widest == nullptr || one.nearness.widest_spread > widest->nearness.widest_spread) widest = &one;
  }
  const bool has_ends = std::ranges::any_of(
      report.errors, [](const calib::MergedError& error) { return error.datatype.fraction == 0; });
  std::vector<Labelled> lines = {
      {"Exact", concat("sensitivities, the largest magnitudes",
                       has_ends ? ", the least and greatest number of each channel" : "")}};
  if (widest != nullptr) {
    lines.push_back({"Thresholds", concat("those of outliers lie between the runs', which differ by ",
                                          percent(spread / counted), " of a channel's range (mean; at most ",
                                          percent(widest->nearness.widest_spread), ", layer ", widest->layer,
                                          ", channel ", widest->nearness.widest_channel, ")")});
  }
  lines.push_back({"Datatypes",
                   "their errors, from the runs' histograms, are about those of the table; none is proven to "
                   "be the best"});
  return labelled_text(lines);
}

std::string merge_text(const calib::MergeReport& report, const calib::MergeOptions& options) {
  return concat("Merged into ", options.out.string(), ":\n", runs_text(report, options.codebooks), "\n",
                errors_text(report), "\n", nearness_text(report));
}

Json run_json(const formats::CalibrationInfo& info) {
  return {{"samples", info.samples}, {"seqlen", info.seqlen}, {"tokens", info.tokens}, {"loss", info.loss}};
}

Json merge_json(const calib::MergeReport& report, const calib::MergeOptions& options) {
  Json runs = Json::array(), tensors = Json::array(), methods = Json::array();
  for (std::size_t i = 0; i < report.runs.size(); ++i) {
    runs.push_back(run_json(report.runs[i]));
    runs.back()["file"] = options.codebooks[i].string();
  }
  for (const calib::MergedError& error : report.errors) {
    methods.push_back({{"name", error.datatype.name()},
                       {"own_error", error.own},
                       {"error", error.own + error.excess},
                       {"error_excess", relative(error)}});
  }
  for (const calib::TensorNearness& one : report.tensors) {
    double excess = 0;
    for (const calib::MergedError& error : one.nearness.errors) excess = std::max(excess, relative(error));
    tensors.push_back({{"layer", one.layer},
                       {"tensor", one.tensor},
                       {"threshold_spread", one.nearness.threshold_spread},
                       {"widest_threshold_spread", one.nearness.widest_spread},
                       {"error_excess", excess}});
  }
  return {{"out", options.out.string()},   {"content_sha256", report.codebook.content_sha256},
          {"runs", std::move(runs)},       {"merged", run_json(report.codebook.calibration)},
          {"methods", std::move(methods)}, {"tensors", std::move(tensors)},
          {"warnings", report.warnings}};
}

}  // namespace

int run_merge(const Strings& arguments) {
  MergeArguments parsed;
  CommandLine line("merge",
                   "Makes one codebook of those of several runs over other samples or domains, without the "
                   "model and the texts. "
                   "Sensitivities add up exactly; how near the others come is printed.",
                   "  kvcal merge prose.h5 code.h5 chats.h5 --out all.h5");
  line.app()
      .add_option("FILES", parsed.options.codebooks,
                  "Codebooks of one model, calibrated with the same options")
      ->type_name(" ");
  line.app().add_option("-o,--out", parsed.options.out, "The codebook to write")->type_name("FILE.h5");
  line.app().add_flag("--overwrite", parsed.options.overwrite, "Replace an existing --out");
  line.add_json(parsed.json);
  if (!line.parse(arguments)) return kDone;
  require(!parsed.options.codebooks.empty(), "FILES",
          "name the codebooks, such as kvcal merge a.h5 b.h5 --out ab.h5");
  require(!parsed.options.out.empty(), "--out", "name the codebook to write");
  std::vector<std::filesystem::path> inputs = parsed.options.codebooks;
  inputs.push_back(parsed.options.out);
  check_outputs(parsed.json, {}, inputs);

  const calib::MergeReport report = calib::merge(parsed.options);
  for (const std::string& warning : report.warnings) log_warning(warning);
  parsed.json.write(merge_json(report, parsed.options));
  if (!parsed.json.to_stdout()) print(merge_text(report, parsed.options));
  return kDone;
}

}  // namespace kvcal::apps
