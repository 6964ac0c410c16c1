// The half of codebook_view.h that people read.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "apps/codebook_view.h"
#include "apps/sizes.h"
#include "apps/terminal.h"
#include "apps/text_table.h"
#include "base/error.h"

namespace kvcal::apps {
namespace {

using base::concat;

double fisher_sum(const formats::TensorCodebook& tensor) {
  return std::accumulate(tensor.fisher_channel.begin(), tensor.fisher_channel.end(), 0.0);
}

std::string percent(double share) {
  return std::isfinite(share) ? concat(format_number(share * 100, 3), "%") : "-";
}

bool has_stored_thresholds(const formats::TensorCodebook& tensor) {
  return tensor.tensor.thresholds == formats::ThresholdScope::channel;
}

// Middle, narrowest and widest range of the channels between their thresholds.
std::string thresholds_text(const formats::OutlierSet& set) {
  std::vector<double> widths;
  for (std::size_t i = 0; i < set.lower.size(); ++i)
    widths.push_back(double{set.upper[i]} - double{set.lower[i]});
  const auto widest = std::max_element(widths.begin(), widths.end()) - widths.begin();
  const auto narrowest = std::min_element(widths.begin(), widths.end()) - widths.begin();
  const auto channel = [&](std::ptrdiff_t index) {
    const auto at = static_cast<std::size_t>(index);
    return concat("[", format_number(set.lower[at]), ", ", format_number(set.upper[at]), "] (channel ", index,
                  ")");
  };
  std::vector<double> sorted = widths;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2),
                   sorted.end());
  return concat("of ", widths.size(), " channels: widest ", channel(widest), ", narrowest ",
                channel(narrowest), ", median width ", format_number(sorted[sorted.size() / 2]));
}

// Numbers of one width, as many to a line as there is room for.
std::string numbers_text(const std::vector<double>& numbers) {
  std::string text;
  for (const double number : numbers) {
    char cell[32];
    std::snprintf(cell, sizeof(cell), "%s%.5f", number < 0 ? "" : " ", number);
    text += concat(text.empty() ? "" : " ", cell);
  }
  return text;
}

std::string datatype_text(const formats::Datatype& datatype, double fraction) {
  std::vector<double> normed;
  for (const float centroid : datatype.centroids)
    normed.push_back(double{centroid} * datatype.qnorm_scale + datatype.qnorm_offset);
  const double gap = datatype.lower_bound > 0 ? datatype.objective / datatype.lower_bound - 1 : 0;
  const bool is_proven = datatype.lower_bound > 0 || datatype.objective == 0;
  return concat("  ", bold(formats::DatatypeChoice{datatype.bits, fraction, false}.name()), "\n") +
         labelled_text({{"objective", concat(format_number(datatype.objective, 6),
                                             is_proven ? concat(", ", percent(gap),
                                                                " above what is proven to be the least")
                                                       : ", of merged runs",
                                             "; weights ", datatype.weights)},
                        {"centroids", numbers_text({datatype.centroids.begin(), datatype.centroids.end()})},
                        {"Q-Norm", concat("x ", format_number(datatype.qnorm_scale, 6),
                                          datatype.qnorm_offset < 0 ? " - " : " + ",
                                          format_number(std::abs(datatype.qnorm_offset), 6))},
                        {"Q-Normed", numbers_text(normed)}},
                       4);
}

// "Keys", "Values"
std::string plural_heading(std::string name) {
  name.front() = static_cast<char>(name.front() - 'a' + 'A');
  return name + "s";
}

std::string tensor_text(const formats::TensorCodebook& tensor) {
  const bool has_thresholds = has_stored_thresholds(tensor);
  std::string text =
      hanging(concat(
          plural_heading(tensor.tensor.name), ": ",
          plural(static_cast<std::int64_t>(tensor.fisher_channel.size()), "channel"), ", Fisher information ",
          format_number(fisher_sum(tensor)), "; between the sample's halves ",
          has_thresholds
              ? concat("thresholds shift by ", percent(tensor.halves.threshold_shift), " of the range, ")
              : "",
          "datatypes leave ", percent(tensor.halves.datatype_excess), " more error")) +
      "\n";
  for (const formats::OutlierSet& set : tensor.outliers) {
    text +=
        hanging(concat("  Outliers ", percent(set.fraction), ": thresholds ",
                       has_thresholds ? thresholds_text(set) : "found for each token when it is quantised"),
                kColumns, 4) +
        "\n";
    for (const formats::Datatype& datatype : set.datatypes) text += datatype_text(datatype, set.fraction);
  }
  return text;
}

std::string model_line(const formats::ModelInfo& model) {
  return concat(model.name, " (", model.architecture, "): ", plural(model.num_layers, "layer"), ", ",
                plural(model.num_attention_heads, "attention head"), ", ",
                plural(model.num_kv_heads, "kv head"), " of ", model.head_dim);
}

bool is_estimated(const calib::CodebookSummary& summary) {
  return std::ranges::all_of(
      summary.methods, [](const calib::MethodEstimate& method) { return method.divergence.has_value(); });
}

// The size of a method's cache, what it is estimated to cost.
std::string methods_text(const calib::CodebookSummary& summary) {
  TextTable table({{"method", Align::kLeft}, {"bits/value"}, {"cache"}, {"KL"}});
  table.add_row({"fp16", "16.00", format_bytes(summary.exact_cache_bytes)});
  for (const calib::MethodEstimate& method : summary.methods) {
    table.add_row({method.datatype.name(), fixed(method.bits_per_value, 2), format_bytes(method.cache_bytes),
                   method.divergence ? format_number(*method.divergence, 3) : "-"});
  }
  if (const auto& recipe = summary.recipe) {
    table.add_row({"recipe", fixed(recipe->bits_per_value, 2), format_bytes(recipe->cache_bytes),
                   format_number(recipe->divergence, 3)});
  }
  return table.text();
}

std::string methods_legend(const calib::CodebookSummary& summary) {
  const bool estimated = is_estimated(summary);
  return labelled_text(
      {{"bits/value", "all that a sequence stores, by number"},
       {"cache", concat("of one sequence of ", format_count(calib::kSummaryContext), " tokens")},
       {"KL", estimated
                  ? "estimate of how far next-token distributions move, in nats, from the calibration's "
                    "sensitivities; kvcal validate measures it"
                  : "no estimate: errors were not weighed by sensitivity in the values' own units"}});
}

std::string sample_verdict(const formats::Codebook& codebook, const calib::CodebookSummary& summary) {
  const std::string measured =
      concat("between its halves thresholds differ by ", percent(summary.sample.threshold_shift),
             " of a channel's range (limit ", percent(calib::kThresholdShiftLimit), "), datatypes leave ",
             percent(summary.sample.datatype_excess), " more error (limit ",
             percent(calib::kDatatypeExcessLimit), ")");
  const std::string size = plural(codebook.calibration.samples, "window");
  if (summary.advice.empty()) return concat("enough, ", size, ": ", measured);
  std::int64_t samples = 0;
  for (const calib::SampleAdvice& part : summary.advice) samples = std::max(samples, part.samples);
  return concat(attention("small"), ", ", size, ": ", measured, "; try --samples ", samples);
}

// The method at whose cost a reader looks first: 3 bits with outliers, else the last.
const calib::MethodEstimate* typical_method(const calib::CodebookSummary& summary) {
  const calib::MethodEstimate* typical = nullptr;
  for (const calib::MethodEstimate& method : summary.methods) {
    if (typical == nullptr || typical->datatype.bits != 3 || method.datatype.bits == 3) typical = &method;
  }
  return typical;
}

std::string weakest_line(const calib::CodebookSummary& summary) {
  const calib::MethodEstimate* method = typical_method(summary);
  if (method == nullptr) return "-";
  std::string text;
  for (const calib::TensorEstimate& tensor : method->worst(3)) {
    text += concat(text.empty() ? "" : ", ", "layer ", tensor.layer, " ", tensor.tensor, "s ",
                   percent(tensor.share));
  }
  return concat(text, " of the weighted error that ", method->datatype.name(), " leaves");
}

std::vector<double> fractions_of(const calib::CodebookSummary& summary) {
  std::vector<double> fractions;
  for (const calib::MethodEstimate& method : summary.methods) {
    if (std::ranges::find(fractions, method.datatype.fraction) == fractions.end())
      fractions.push_back(method.datatype.fraction);
  }
  return fractions;
}

// A line for each tensor: what it costs by each method of one outlier fraction.
std::string costs_text(const calib::CodebookSummary& summary, double fraction) {
  const bool estimated = is_estimated(summary);
  std::vector<TextTable::Column> columns = {{"layer"}, {"tensor", Align::kLeft}};
  std::vector<const calib::MethodEstimate*> methods;
  for (const calib::MethodEstimate& method : summary.methods) {
    if (method.datatype.fraction != fraction) continue;
    methods.push_back(&method);
    columns.push_back({method.datatype.name()});
  }
  TextTable table(columns);
  for (std::size_t i = 0; i < methods.front()->tensors.size(); ++i) {
    const calib::TensorEstimate& first = methods.front()->tensors[i];
    std::vector<std::string> cells = {std::to_string(first.layer), first.tensor};
    for (const calib::MethodEstimate* method : methods) {
      const bool held = i < method->tensors.size();
      cells.push_back(!held       ? "-"
                      : estimated ? format_number(*method->tensors[i].divergence, 3)
                                  : percent(method->tensors[i].share));
    }
    table.add_row(std::move(cells));
  }
  return table.text();
}

// Where Fisher information lies, and what each tensor adds to the difference between the sample's halves.
std::string halves_text(const formats::Codebook& codebook, const calib::CodebookSummary& summary) {
  double total = 0;
  for (const formats::LayerCodebook& layer : codebook.layers)
    for (const formats::TensorCodebook& tensor : layer.tensors) total += fisher_sum(tensor);
  TextTable table({{"layer"}, {"tensor", Align::kLeft}, {"Fisher"}, {"thresholds"}, {"datatypes"}});
  std::size_t i = 0;
  for (const formats::LayerCodebook& layer : codebook.layers) {
    for (const formats::TensorCodebook& tensor : layer.tensors) {
      const calib::SampleDifference& share = summary.sample_tensors[i++].share;
      table.add_row({std::to_string(layer.index), tensor.tensor.name, percent(fisher_sum(tensor) / total),
                     has_stored_thresholds(tensor) ? percent(share.threshold_shift) : "-",
                     percent(share.datatype_excess)});
    }
  }
  return table.text() + "\n" +
         labelled_text(
             {{"Fisher", "share of the model's information on the loss"},
              {"thresholds", concat("what the tensor adds to their difference between the sample's halves, ",
                                    percent(summary.sample.threshold_shift))},
              {"datatypes", concat("the same for what the other half's datatype costs more, ",
                                   percent(summary.sample.datatype_excess))}});
}

std::string sizes_text(const formats::LayerCodebook& layer) {
  const bool has_kv_heads = layer.has_kv_heads();
  std::string text;
  if (has_kv_heads) {
    text = concat(plural(layer.key().tensor.heads, "kv head"), ", keys of ", layer.key().tensor.dim,
                  ", values of ", layer.value().tensor.dim);
  }
  for (const formats::TensorCodebook& codebook : layer.tensors) {
    const formats::CachedTensor& tensor = codebook.tensor;
    if (has_kv_heads && (tensor.name == "key" || tensor.name == "value")) continue;
    text += concat(text.empty() ? "" : ", ", tensor.name, " with ", plural(tensor.heads, "head"), " of ",
                   tensor.dim);
  }
  return text;
}

// JSON that can be broken into lines.
std::string spaced(const std::string& json) {
  std::string text;
  for (const char letter : json) text += letter == ',' ? std::string(", ") : std::string(1, letter);
  return text;
}

std::string sample_line(const formats::CalibrationInfo& calibration) {
  return concat(plural(calibration.samples, "sample"), " of ", format_count(calibration.seqlen), ": ",
                plural(calibration.tokens, "token"), ", bos ", calibration.bos);
}

}  // namespace

std::string summary_text(const formats::Codebook& codebook, const calib::CodebookSummary& summary) {
  return concat(
      hanging(model_line(codebook.model)), "\n\n", methods_text(summary), "\n", methods_legend(summary), "\n",
      labelled_text({{"Sample", sample_verdict(codebook, summary)}, {"Weakest", weakest_line(summary)}}));
}

std::string provenance_text(const formats::Codebook& codebook, Fingerprints fingerprints) {
  const formats::ModelInfo& model = codebook.model;
  const formats::CalibrationInfo& calibration = codebook.calibration;
  // Twelve digits tell any two files of a collection apart; all of them fit no line.
  const auto hash = [&](const std::string& digits) {
    return concat("sha256 ", fingerprints == Fingerprints::kWhole ? digits : digits.substr(0, 12));
  };
  std::vector<Labelled> lines = {
      {"Model", concat("config ", hash(model.config_sha256), ", weights ", hash(model.weights_sha256))}};
  for (const formats::TextInfo& info : calibration.texts)
    lines.push_back({"Text", concat(info.name, ", ", hash(info.sha256))});
  lines.push_back({"Tokens", concat(sample_line(calibration), ", ", plural(calibration.sinks, "sink"),
                                    ", seed ", calibration.seed, ", ", hash(calibration.tokens_sha256))});
  lines.push_back({"Method", concat("sensitivity ", calibration.sensitivity, ", fisher scale ",
                                    calibration.fisher_scale, ", value scope ", calibration.value_scope, ", ",
                                    calibration.dtype, " on ", calibration.device)});
  lines.push_back(
      {"Loss", concat(format_number(calibration.loss, 6), " nats a token (perplexity ",
                      format_number(std::exp(calibration.loss), 5), " on the calibration text)")});
  const std::size_t held = codebook.layers.size();
  if (held != static_cast<std::size_t>(std::max(0, model.num_layers)))
    lines.push_back({"Layers", concat(held, " of the model's ", model.num_layers)});
  lines.push_back(
      {"File", concat("schema ", codebook.schema_major, ".", codebook.schema_minor, ", made by ",
                      codebook.created_by, "; content verified, ", hash(codebook.content_sha256))});
  return labelled_text(lines);
}

std::string layers_text(const formats::Codebook& codebook, const calib::CodebookSummary& summary) {
  if (codebook.layers.empty()) return "no layers\n";
  std::string text;
  for (const double fraction : fractions_of(summary)) text += costs_text(summary, fraction) + "\n";
  text += hanging(!is_estimated(summary)
                      ? "Share of the model's weighted error that each datatype leaves in the tensor, in %."
                      : "Estimated KL of storing the tensor alone, in nats a token.");
  return concat(text, "\n\n", halves_text(codebook, summary));
}

std::string layer_text(const formats::LayerCodebook& layer) {
  std::string text = hanging(concat("Layer ", layer.index, ": ", sizes_text(layer),
                                    layer.window > 0 ? concat(", sliding window ", layer.window) : "",
                                    ", rope ", spaced(layer.rope_json))) +
                     "\n";
  for (const formats::TensorCodebook& tensor : layer.tensors) text += tensor_text(tensor);
  return text;
}

std::string plan_text(const calib::CalibrationPlan& plan) {
  const calib::ResourceNeed& need = plan.need;
  const calib::StageNeed& stage = need.largest;
  std::vector<Labelled> lines = {
      {"Model", concat(model_line(plan.model), ", ", plural(plan.parameters, "parameter"), ", computed in ",
                       plan.calibration.dtype)},
      {"Sample", sample_line(plan.calibration)},
      {"Memory",
       concat("needs ", format_bytes(need.memory_bytes), " of the ", format_bytes(need.memory_limit_bytes),
              " it may use, in the ", stage.stage, " pass: weights ", format_bytes(stage.weights_bytes), ", ",
              plural(need.lanes, "sample"), " at a time ", format_bytes(stage.working_bytes),
              ", keys, values and gradients ", format_bytes(stage.capture_bytes), ", fits ",
              format_bytes(stage.fit_bytes), ", the program ", format_bytes(need.base_bytes))},
      {"Disk", concat("needs ", format_bytes(need.disk_bytes), " of the ", format_bytes(need.disk_free_bytes),
                      " free, in ", plan.work.string())},
      {"Time", concat(format_duration(need.seconds_low), " to ", format_duration(need.seconds_high),
                      " on an idle machine")}};
  if (plan.goes_on) {
    lines.push_back({"Goes on", concat("an earlier run left ", plan.layers_fitted, " of ",
                                       plural(plan.model.num_layers, "layer"),
                                       " fitted; left to do: ", plan.left.text())});
  }
  for (const std::string& damage : plan.damaged) lines.push_back({"Damaged", damage});
  return labelled_text(lines);
}

}  // namespace kvcal::apps
