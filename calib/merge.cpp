#include "calib/merge.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/sha256.h"
#include "calib/version.h"
#include "formats/json.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;
using base::concat;
using base::InvalidInput;
using base::WrongUsage;
using formats::CalibrationInfo;
using nlohmann::json;

constexpr const char* kRuns = "merged";  // of the options: what each run was

// A field of a file's JSON, which may hold anything.
std::string text_field(const json& object, const char* name, const std::string& otherwise) {
  const auto found = object.is_object() ? object.find(name) : object.end();
  return found != object.end() && found->is_string() ? found->get<std::string>() : otherwise;
}

struct Run {
  fs::path file;
  formats::Codebook codebook;
};

void check_places(const MergeOptions& options) {
  if (options.codebooks.size() < 2)
    throw WrongUsage(
        "one codebook alone is merged already; name two or more, such as kvcal merge a.h5 b.h5 --out ab.h5");
  std::error_code missing;
  for (auto file = options.codebooks.begin(); file != options.codebooks.end(); ++file) {
    if (std::any_of(options.codebooks.begin(), file, [&](const fs::path& other) {
          return other == *file || fs::equivalent(other, *file, missing);
        }))
      throw WrongUsage(concat(file->string(), " is named twice; its sample would count twice"));
    if (options.out == *file || fs::equivalent(options.out, *file, missing))
      throw WrongUsage(
          concat("--out ", options.out.string(), " is one of the codebooks to merge; name another file"));
  }
  if (!options.overwrite && fs::exists(options.out)) {
    throw base::SystemError(
        concat(options.out.string(), " exists; name another file with --out, or give --overwrite"));
  }
}

std::vector<Run> read_runs(const std::vector<fs::path>& files) {
  std::vector<Run> runs;
  for (const fs::path& file : files) runs.push_back({file, formats::read_known_codebook(file)});
  return runs;
}

// The runs that a codebook was merged of, or itself.
json described_runs(const formats::Codebook& codebook, const std::string& file) {
  const CalibrationInfo& info = codebook.calibration;
  const json options = formats::parse_json(info.options_json, concat(file, ": /calibration@options"));
  const auto merged = options.is_object() ? options.find(kRuns) : options.end();
  if (merged != options.end() && merged->is_array() && !merged->empty()) return *merged;
  return json::array({{{"content_sha256", codebook.content_sha256},
                       {"tokens_sha256", info.tokens_sha256},
                       {"samples", info.samples},
                       {"seqlen", info.seqlen},
                       {"tokens", info.tokens},
                       {"bos", info.bos},
                       {"seed", info.seed},
                       {"device", info.device},
                       {"loss", info.loss}}});
}

/// That the runs are of one model, calibrated in one way.
class Comparison {
 public:
  explicit Comparison(const std::vector<Run>& runs) : first_(runs.front()) {
    for (const Run& run : runs) check_tensors(run);
    for (const Run& other : std::span(runs).subspan(1)) compare(other);
  }

 private:
  void compare(const Run& other) const {
    const formats::ModelInfo &model = first_.codebook.model, &its = other.codebook.model;
    if (model.config_sha256 != its.config_sha256 || model.weights_sha256 != its.weights_sha256) {
      throw InvalidInput(concat(other.file.string(), " is of another model (", its.name, ") than ",
                                first_.file.string(), " (", model.name,
                                "): config or weights differ; merge runs of one model"));
    }
    compare_calibration(other);
    compare_layers(other);
  }

  void compare_calibration(const Run& other) const {
    const CalibrationInfo &info = first_.codebook.calibration, &its = other.codebook.calibration;
    same(other, "revision of the algorithm", info.revision, its.revision);
    same(other, "--sinks", info.sinks, its.sinks);
    same(other, "--dtype", info.dtype, its.dtype);
    same(other, "--value-scope", info.value_scope, its.value_scope);
    same(other, "--sensitivity", info.sensitivity, its.sensitivity);
    same(other, "--fisher-scale", info.fisher_scale, its.fisher_scale);
    same(other, "--ranges", ranges_of(first_), ranges_of(other));
    for (const Run* run : {&first_, &other}) {
      const CalibrationInfo& counted = run->codebook.calibration;
      const double first_tokens = static_cast<double>(counted.samples) * std::max(1, counted.sinks);
      if (counted.samples < 1 || static_cast<double>(counted.tokens) <= first_tokens) {
        throw InvalidInput(concat(run->file.string(), ": ", counted.samples, " samples of ", counted.tokens,
                                  " tokens in all leave nothing that its statistics could be of"));
      }
    }
  }

  static std::string ranges_of(const Run& run) {
    const json options = formats::parse_json(run.codebook.calibration.options_json, run.file.string());
    return text_field(options, "ranges", "threshold");
  }

  template <typename Value>
  void same(const Run& other, std::string_view what, const Value& expected, const Value& found) const {
    if (expected == found) return;
    throw InvalidInput(concat(other.file.string(), " has another ", what, " (", found, ") than ",
                              first_.file.string(), " (", expected, "); calibrate both in the same way"));
  }

  void compare_layers(const Run& other) const {
    const auto &layers = first_.codebook.layers, &its = other.codebook.layers;
    if (!std::ranges::equal(layers, its, {}, &formats::LayerCodebook::index, &formats::LayerCodebook::index))
      throw InvalidInput(concat(other.file.string(), " has other layers than ", first_.file.string(),
                                "; calibrate both with one version"));
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const auto &tensors = layers[i].tensors, &its_tensors = its[i].tensors;
      const auto name = [](const formats::TensorCodebook& one) { return one.tensor.name; };
      if (!std::ranges::equal(tensors, its_tensors, {}, name, name)) {
        throw InvalidInput(concat(other.file.string(), ": layer ", layers[i].index,
                                  " has other tensors than that of ", first_.file.string(),
                                  "; calibrate both with one version"));
      }
      for (std::size_t t = 0; t < tensors.size(); ++t) {
        const std::string difference = merge_difference(tensors[t], its_tensors[t]);
        if (!difference.empty())
          fail(other, layers[i].index, name(tensors[t]),
               difference + "; calibrate both with the same options");
      }
    }
  }

  static void check_tensors(const Run& run) {
    for (const formats::LayerCodebook& layer : run.codebook.layers) {
      for (const formats::TensorCodebook& tensor : layer.tensors) {
        const std::string obstacle = merge_obstacle(tensor);
        if (!obstacle.empty()) fail(run, layer.index, tensor.tensor.name, obstacle);
      }
    }
  }

  [[noreturn]] static void fail(const Run& run, int layer, const std::string& tensor,
                                const std::string& what) {
    throw InvalidInput(concat(run.file.string(), ": layer ", layer, ", ", tensor, "s: ", what));
  }

  const Run& first_;
};

void check_room(const std::string& record, const char* what) {
  if (record.size() <= formats::kMaxCodebookText) return;
  throw InvalidInput(concat(what, " take ", record.size(), " bytes in a codebook, which has room for ",
                            formats::kMaxCodebookText, "; merge fewer of them"));
}

// All runs' together; of what differs between them each run's own stands in the options, but for texts.
CalibrationInfo merge_info(const std::vector<Run>& runs) {
  CalibrationInfo info = runs.front().codebook.calibration;
  info.samples = info.tokens = 0;
  info.texts.clear();
  double loss = 0;
  std::string tokens;
  json described = json::array();
  for (const Run& run : runs) {
    const CalibrationInfo& its = run.codebook.calibration;
    info.samples = base::checked_add(info.samples, its.samples, "the number of samples");
    info.tokens = base::checked_add(info.tokens, its.tokens, "the number of tokens");
    info.seqlen = std::max(info.seqlen, its.seqlen);
    for (const formats::TextInfo& text : its.texts) {
      if (std::ranges::find(info.texts, text) == info.texts.end()) info.texts.push_back(text);
    }
    loss += its.loss * static_cast<double>(its.samples);
    tokens += its.tokens_sha256;
    for (const json& one : described_runs(run.codebook, run.file.string())) described.push_back(one);
    if (its.seed != info.seed) info.seed = 0;
    if (its.bos != info.bos) info.bos = "mixed";
  }
  info.loss = loss / static_cast<double>(info.samples);
  info.tokens_sha256 = base::sha256_hex(tokens);
  json options = formats::parse_json(info.options_json, runs.front().file.string());
  if (!options.is_object()) options = json::object();
  options["samples"] = info.samples;
  options["seqlen"] = info.seqlen;
  options["bos"] = info.bos;
  if (options.contains("seed")) options["seed"] = info.seed;
  options[kRuns] = std::move(described);
  info.options_json = options.dump();
  check_room(texts_json(info.texts), "the names and hashes of the runs' texts");
  check_room(info.options_json, "what is kept of each run");
  return info;
}

// Gradients are of a window's mean loss: a window of half as many targets has twice the gradient of each. Sums that are none stay counts.
RunSample run_sample(const CalibrationInfo& info, const CalibrationInfo& merged) {
  const double ratio = info.targets() / merged.targets();
  return {info.counted(), info.tokens, info.sensitivity == "fisher" ? ratio * ratio : 1};
}

void add_errors(std::vector<MergedError>& sums, const std::vector<MergedError>& errors) {
  for (const MergedError& error : errors) {
    auto sum = std::ranges::find(sums, error.datatype, &MergedError::datatype);
    if (sum == sums.end()) sum = sums.insert(sums.end(), {error.datatype, 0, 0});
    sum->own += error.own;
    sum->excess += error.excess;
  }
}

/// Of one layer.
struct MergedLayer {
  formats::LayerCodebook codebook;
  std::vector<TensorNearness> tensors;
};

MergedLayer merge_layer(const std::vector<Run>& runs, std::size_t index, std::span<const RunSample> samples,
                        const MergeRules& rules) {
  MergedLayer merged{runs.front().codebook.layers[index], {}};
  formats::LayerCodebook& layer = merged.codebook;
  for (std::size_t t = 0; t < layer.tensors.size(); ++t) {
    std::vector<const formats::TensorCodebook*> tensors;
    for (const Run& run : runs) tensors.push_back(&run.codebook.layers[index].tensors[t]);
    const std::string name = layer.tensors[t].tensor.name;
    try {
      MergedTensor tensor = merge_tensors(tensors, samples, rules);
      layer.tensors[t] = std::move(tensor.codebook);
      merged.tensors.push_back({layer.index, name, std::move(tensor.nearness)});
    } catch (const InvalidInput& error) {
      throw InvalidInput(concat("merging ", runs.front().file.string(), " and others: layer ", layer.index,
                                ", ", name, "s, ", error.what(), "; is the checkpoint damaged?"));
    }
  }
  return merged;
}

void merge_layers(const std::vector<Run>& runs, MergeReport& report) {
  const CalibrationInfo& info = report.codebook.calibration;
  std::vector<RunSample> samples;
  for (const Run& run : runs) samples.push_back(run_sample(run.codebook.calibration, info));
  const MergeRules rules{.range_weights = info.fisher_scale != "none"};
  std::vector<MergedLayer> layers(runs.front().codebook.layers.size());
  base::parallel_for(static_cast<std::int64_t>(layers.size()), 0, [&](std::int64_t i) {
    const auto index = static_cast<std::size_t>(i);
    layers[index] = merge_layer(runs, index, samples, rules);
  });
  for (MergedLayer& layer : layers) {
    report.codebook.layers.push_back(std::move(layer.codebook));
    for (TensorNearness& tensor : layer.tensors) {
      add_errors(report.errors, tensor.nearness.errors);
      report.tensors.push_back(std::move(tensor));
    }
  }
}

std::vector<std::string> doubts(const std::vector<Run>& runs) {
  std::vector<std::string> warnings;
  std::map<std::string, fs::path> seen;
  for (const Run& run : runs) {
    for (const std::string& tokens : calibrated_tokens(run.codebook)) {
      const auto [before, is_new] = seen.emplace(tokens, run.file);
      if (is_new || tokens.empty()) continue;
      warnings.push_back(concat(run.file.string(), " and ", before->second.string(),
                                " were calibrated on the same tokens, which count twice"));
    }
  }
  return warnings;
}

}  // namespace

std::vector<std::string> calibrated_tokens(const formats::Codebook& codebook) {
  std::vector<std::string> tokens;
  for (const json& run : described_runs(codebook, codebook.model.name))
    tokens.push_back(text_field(run, "tokens_sha256", ""));
  return tokens;
}

MergeReport merge(const MergeOptions& options) {
  check_places(options);
  const std::vector<Run> runs = read_runs(options.codebooks);
  (void)Comparison(runs);
  MergeReport report;
  for (const Run& run : runs) report.runs.push_back(run.codebook.calibration);
  report.codebook.created_by = std::string("kvcal ") + version();
  report.codebook.model = runs.front().codebook.model;
  report.codebook.calibration = merge_info(runs);
  merge_layers(runs, report);
  report.warnings = doubts(runs);
  const fs::path target = base::behind_links(options.out);
  formats::write_codebook(target, report.codebook);
  report.codebook = formats::read_codebook(target);
  return report;
}

}  // namespace kvcal::calib
