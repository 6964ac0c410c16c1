// The half of codebook_view.h that people read.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <sstream>

#include "apps/codebook_view.h"
#include "apps/sizes.h"
#include "base/error.h"

namespace kvcal::apps {
namespace {

using base::concat;

// "Model       text" with the texts of all lines below each other.
std::string labelled(const std::string& label, const std::string& text) {
  constexpr std::size_t kColumn = 12;
  std::string line = label;
  line.resize(std::max(kColumn, label.size() + 1), ' ');
  return line + text + "\n";
}

std::string plural(std::int64_t count, const std::string& noun) {
  return concat(format_count(count), " ", noun, count == 1 ? "" : "s");
}

double fisher_sum(const formats::TensorCodebook& tensor) {
  return std::accumulate(tensor.fisher_channel.begin(), tensor.fisher_channel.end(), 0.0);
}

std::string right_aligned(const std::string& text, std::size_t width) {
  return text.size() >= width ? " " + text : std::string(width - text.size(), ' ') + text;
}

std::string percent(double share) {
  return std::isfinite(share) ? concat(format_number(share * 100, 3), "%") : "-";
}

// The datatype of a tensor for one fraction and number of bits; null where there is none.
const formats::Datatype* find_datatype(const formats::TensorCodebook& tensor, double fraction, int bits) {
  for (const formats::OutlierSet& set : tensor.outliers) {
    if (set.fraction != fraction) continue;
    for (const formats::Datatype& datatype : set.datatypes) {
      if (datatype.bits == bits) return &datatype;
    }
  }
  return nullptr;
}

std::string method_name(double fraction, int bits) {
  const std::string name = concat("nuq", bits);
  return fraction == 0 ? name : concat(name, "-", format_number(fraction * 100, 6), "%");
}

constexpr std::size_t kWide = 11;

// The table has a column for each datatype of these.
const std::vector<formats::OutlierSet>& table_columns(const formats::Codebook& codebook) {
  static const std::vector<formats::OutlierSet> kNone;
  const std::vector<formats::TensorCodebook>& tensors = codebook.layers.front().tensors;
  return tensors.empty() ? kNone : tensors.front().outliers;
}

// As wide as the longest name in the table.
std::size_t name_width(const formats::Codebook& codebook) {
  std::size_t width = 5;  // "value"
  for (const formats::LayerCodebook& layer : codebook.layers) {
    for (const formats::TensorCodebook& tensor : layer.tensors)
      width = std::max(width, tensor.tensor.name.size());
  }
  return width;
}

std::string table_head(const formats::Codebook& codebook, std::size_t names) {
  std::string head = "layer  tensor";
  head += right_aligned("Fisher", 5 + 2 + names + kWide - head.size());
  for (const formats::OutlierSet& set : table_columns(codebook)) {
    for (const formats::Datatype& datatype : set.datatypes) {
      head += right_aligned(method_name(set.fraction, datatype.bits), kWide);
    }
  }
  return head + right_aligned("threshold", kWide) + right_aligned("datatype", kWide) + "\n";
}

bool has_stored_thresholds(const formats::TensorCodebook& tensor) {
  return tensor.tensor.thresholds == formats::ThresholdScope::channel;
}

std::string table_line(const formats::Codebook& codebook, const formats::LayerCodebook& layer,
                       const formats::TensorCodebook& tensor, std::size_t names, double total_fisher) {
  std::string name = tensor.tensor.name;
  name.resize(names, ' ');
  std::string line = right_aligned(std::to_string(layer.index), 5) + "  " + name;
  line += right_aligned(percent(fisher_sum(tensor) / total_fisher), kWide);
  for (const formats::OutlierSet& set : table_columns(codebook)) {
    for (const formats::Datatype& datatype : set.datatypes) {
      const formats::Datatype* found = find_datatype(tensor, set.fraction, datatype.bits);
      line += right_aligned(found != nullptr ? format_number(found->objective, 3) : "-", kWide);
    }
  }
  line += right_aligned(has_stored_thresholds(tensor) ? percent(tensor.halves.threshold_shift) : "-", kWide);
  return line + right_aligned(percent(tensor.halves.datatype_excess), kWide) + "\n";
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

std::string datatype_text(const formats::Datatype& datatype, double fraction) {
  std::string text = concat(
      "    ", method_name(fraction, datatype.bits), ": objective ", format_number(datatype.objective, 6),
      ", proven bound ", format_number(datatype.lower_bound, 6), ", weights ", datatype.weights,
      ", Q-Norm x ", format_number(datatype.qnorm_scale, 6), datatype.qnorm_offset < 0 ? " - " : " + ",
      format_number(std::abs(datatype.qnorm_offset), 6), "\n");
  std::string plain = "      centroids  ", normed = "      Q-Normed   ";
  for (const float centroid : datatype.centroids) {
    char number[32];
    std::snprintf(number, sizeof(number), " %8.5f", double{centroid});
    plain += number;
    std::snprintf(number, sizeof(number), " %8.5f",
                  double{centroid} * datatype.qnorm_scale + datatype.qnorm_offset);
    normed += number;
  }
  return text + plain + "\n" + normed + "\n";
}

// "Keys", "Values"
std::string plural_heading(std::string name) {
  name.front() = static_cast<char>(name.front() - 'a' + 'A');
  return name + "s";
}

std::string tensor_text(const formats::TensorCodebook& tensor) {
  const bool has_thresholds = has_stored_thresholds(tensor);
  std::string text = concat(
      plural_heading(tensor.tensor.name), ": ", tensor.fisher_channel.size(),
      " channels, Fisher information ", format_number(fisher_sum(tensor)), "; halves of the sample: ",
      has_thresholds ? concat("thresholds shift by ", percent(tensor.halves.threshold_shift), ", ") : "",
      "datatypes cost ", percent(tensor.halves.datatype_excess), " more on the other half\n");
  for (const formats::OutlierSet& set : tensor.outliers) {
    text += concat("  outliers ", format_number(set.fraction, 6), ": thresholds ",
                   has_thresholds ? thresholds_text(set) : "found for each token when it is quantised", "\n");
    for (const formats::Datatype& datatype : set.datatypes) text += datatype_text(datatype, set.fraction);
  }
  return text;
}

}  // namespace

namespace {

std::string model_line(const formats::ModelInfo& model) {
  return concat(model.name, " (", model.architecture, "): ", plural(model.num_layers, "layer"), ", ",
                plural(model.num_attention_heads, "attention head"), ", ",
                plural(model.num_kv_heads, "kv head"), " of ", model.head_dim);
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

std::string sample_line(const formats::CalibrationInfo& calibration) {
  return concat(plural(calibration.samples, "sample"), " of ", format_count(calibration.seqlen), ": ",
                plural(calibration.tokens, "token"), ", bos ", calibration.bos);
}

}  // namespace

std::string provenance_text(const formats::Codebook& codebook) {
  const formats::ModelInfo& model = codebook.model;
  const formats::CalibrationInfo& calibration = codebook.calibration;
  std::string text = labelled("Model", model_line(model));
  text += labelled("  config", concat("sha256 ", model.config_sha256));
  text += labelled("  weights", concat("sha256 ", model.weights_sha256));
  for (const formats::TextInfo& info : calibration.texts) {
    text += labelled("Text", concat(info.name, ", sha256 ", info.sha256));
  }
  text += labelled(
      calibration.texts.empty() ? "Tokens" : "  tokens",
      concat(sample_line(calibration), ", ", plural(calibration.sinks, "sink"), ", seed ", calibration.seed));
  text += labelled("", concat("sha256 ", calibration.tokens_sha256));
  text += labelled("Method", concat("sensitivity ", calibration.sensitivity, ", fisher scale ",
                                    calibration.fisher_scale, ", value scope ", calibration.value_scope, ", ",
                                    calibration.dtype, " on ", calibration.device));
  text += labelled("Loss", concat(format_number(calibration.loss, 6), " nats a token (perplexity ",
                                  format_number(std::exp(calibration.loss), 5), " on the calibration text)"));
  const std::size_t held = codebook.layers.size();
  if (held != static_cast<std::size_t>(std::max(0, model.num_layers))) {
    text += labelled("Layers", concat(held, " of the model's ", model.num_layers));
  }
  return text + labelled("File",
                         concat("schema ", codebook.schema_major, ".", codebook.schema_minor, ", made by ",
                                codebook.created_by, "; content verified, sha256 ", codebook.content_sha256));
}

std::string layers_text(const formats::Codebook& codebook) {
  if (codebook.layers.empty()) return "no layers\n";
  const std::size_t names = name_width(codebook);
  double total = 0;
  for (const formats::LayerCodebook& layer : codebook.layers) {
    for (const formats::TensorCodebook& tensor : layer.tensors) total += fisher_sum(tensor);
  }
  std::string text =
      "Weighted error of each datatype; Fisher: share of the model's; threshold, datatype: how far fits on "
      "the two halves "
      "of the sample differ.\n" +
      table_head(codebook, names);
  for (const formats::LayerCodebook& layer : codebook.layers) {
    for (const formats::TensorCodebook& tensor : layer.tensors)
      text += table_line(codebook, layer, tensor, names, total);
  }
  return text;
}

std::string layer_text(const formats::LayerCodebook& layer) {
  std::string text = concat("Layer ", layer.index, ": ", sizes_text(layer),
                            layer.window > 0 ? concat(", sliding window ", layer.window) : "", ", rope ",
                            layer.rope_json, "\n");
  for (const formats::TensorCodebook& tensor : layer.tensors) text += tensor_text(tensor);
  return text;
}

std::string plan_text(const calib::CalibrationPlan& plan) {
  const calib::ResourceNeed& need = plan.need;
  const calib::StageNeed& stage = need.largest;
  std::string text =
      labelled("Model", concat(model_line(plan.model), ", ", plural(plan.parameters, "parameter"),
                               ", computed in ", plan.calibration.dtype));
  text += labelled("Sample", sample_line(plan.calibration));
  text += labelled(
      "Memory",
      concat("needs ", format_bytes(need.memory_bytes), " of the ", format_bytes(need.memory_limit_bytes),
             " it may use, in the ", stage.stage, " pass: weights ", format_bytes(stage.weights_bytes), ", ",
             plural(need.lanes, "sample"), " at a time ", format_bytes(stage.working_bytes),
             ", keys, values and gradients ", format_bytes(stage.capture_bytes), ", fits ",
             format_bytes(stage.fit_bytes), ", the program ", format_bytes(need.base_bytes)));
  text += labelled("Disk", concat("needs ", format_bytes(need.disk_bytes), " of the ",
                                  format_bytes(need.disk_free_bytes), " free, in ", plan.work.string()));
  text += labelled("Time", concat(format_duration(need.seconds_low), " to ",
                                  format_duration(need.seconds_high), " on an idle machine"));
  if (plan.goes_on) {
    text += labelled(
        "Goes on", concat("an earlier run left ", plan.layers_fitted, " of ",
                          plural(plan.model.num_layers, "layer"), " fitted; left to do: ", plan.left.text()));
  }
  for (const std::string& damage : plan.damaged) text += labelled("Damaged", damage);
  return text;
}

}  // namespace kvcal::apps
