#include "apps/validation_view.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <vector>

#include "apps/sizes.h"
#include "base/error.h"
#include "calib/validate/method_names.h"

namespace kvcal::apps {
namespace {

using base::concat;

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

Json tensor_json(const calib::TensorReport& tensor) {
  Json json = {{"mse", number(tensor.mse)},
               {"relative", number(tensor.relative)},
               {"weighted", tensor.weighted ? number(*tensor.weighted) : Json(nullptr)},
               {"outliers_observed", number(tensor.outliers_observed)},
               {"outliers_nominal", number(tensor.outliers_nominal)},
               {"outliers_dropped", number(tensor.outliers_dropped)}};
  if (tensor.attention_agreement) json["attention_agreement"] = number(*tensor.attention_agreement);
  if (tensor.alone) {
    json["kld_mean"] = number(tensor.alone->divergence_mean);
    json["kld_stderr"] = number(tensor.alone->divergence_stderr);
    json["kld_p99"] = number(tensor.alone->divergence_p99);
  }
  return json;
}

Json decoding_json(const calib::DecodingReport& decoding) {
  Json means = Json::array(), errors = Json::array(), agreements = Json::array();
  for (const calib::MethodScore& score : decoding.positions) {
    means.push_back(number(score.divergence_mean));
    errors.push_back(number(score.divergence_stderr));
    agreements.push_back(number(score.top1_agreement));
  }
  return {{"kld_mean", number(decoding.score.divergence_mean)},
          {"kld_stderr", number(decoding.score.divergence_stderr)},
          {"kld_p99", number(decoding.score.divergence_p99)},
          {"top1_agreement", number(decoding.score.top1_agreement)},
          {"by_position",
           {{"kld_mean", std::move(means)},
            {"kld_stderr", std::move(errors)},
            {"top1_agreement", std::move(agreements)}}}};
}

Json method_json(const calib::MethodReport& method) {
  const calib::MethodScore& score = method.score;
  Json layers = Json::array();
  for (const calib::LayerReport& layer : method.layers) {
    Json entry = {{"layer", layer.layer}};
    for (const calib::TensorReport& tensor : layer.tensors) entry[tensor.name] = tensor_json(tensor);
    layers.push_back(std::move(entry));
  }
  Json json = {{"name", method.name},
               {"ppl", number(score.perplexity)},
               {"ppl_stderr", number(score.perplexity_stderr)},
               {"ppl_delta", number(method.perplexity_delta)},
               {"ppl_delta_stderr", number(method.perplexity_delta_stderr)},
               {"kld_mean", number(score.divergence_mean)},
               {"kld_stderr", number(score.divergence_stderr)},
               {"kld_p99", number(score.divergence_p99)},
               {"top1_agreement", number(score.top1_agreement)},
               {"bits_per_value", number(method.bits_per_value)},
               {"static_bytes", method.static_bytes},
               {"attention_agreement",
                method.attention_agreement ? number(*method.attention_agreement) : Json(nullptr)},
               {"layers", std::move(layers)}};
  if (method.decoding) json["generate"] = decoding_json(*method.decoding);
  for (const calib::PasskeyReport& passkey : method.passkey) {
    json["passkey"].push_back(
        {{"length", passkey.length}, {"prompts", passkey.prompts}, {"retrieved", passkey.retrieved}});
  }
  return json;
}

/// Lines of cells, the first column to the left and the others to the right.
class Table {
 public:
  void add(std::vector<std::string> cells) { lines_.push_back(std::move(cells)); }

  [[nodiscard]] std::string text() const {
    std::vector<std::size_t> widths;
    for (const auto& line : lines_) {
      widths.resize(std::max(widths.size(), line.size()));
      for (std::size_t c = 0; c < line.size(); ++c) widths[c] = std::max(widths[c], line[c].size());
    }
    std::string text;
    for (const auto& line : lines_) {
      std::string row = line.front() + std::string(widths[0] - line[0].size(), ' ');
      for (std::size_t c = 1; c < line.size(); ++c)
        row += "  " + std::string(widths[c] - line[c].size(), ' ') + line[c];
      text += row + "\n";
    }
    return text;
  }

 private:
  std::vector<std::vector<std::string>> lines_;
};

std::string fixed(double value, int digits) {
  if (!std::isfinite(value)) return "-";
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

bool is_exact(const calib::MethodReport& method) {
  return method.name == calib::kFullPrecision;
}

std::vector<std::string> method_cells(const calib::MethodReport& method) {
  const calib::MethodScore& score = method.score;
  std::vector<std::string> cells = {method.name, fixed(method.bits_per_value, 2), fixed(score.perplexity, 3)};
  if (is_exact(method)) {
    cells.insert(cells.end(), {"", "", "", "", "", "", ""});
    return cells;
  }
  const bool noise = std::abs(method.perplexity_delta) < 2 * method.perplexity_delta_stderr;
  const std::string sign = method.perplexity_delta < 0 ? "" : "+";
  cells.insert(cells.end(), {sign + fixed(method.perplexity_delta, 3),
                             fixed(method.perplexity_delta_stderr, 3), fixed(score.divergence_mean, 5),
                             fixed(score.divergence_p99, 4), fixed(100 * score.top1_agreement, 2),
                             method.attention_agreement ? fixed(100 * *method.attention_agreement, 2) : "-",
                             noise ? "within noise" : ""});
  return cells;
}

std::string limits_text(const ValidationLimits& limits) {
  std::string text;
  if (limits.max_kld) text += concat("a KL divergence of at most ", format_number(*limits.max_kld));
  if (limits.max_ppl_delta) {
    text += concat(text.empty() ? "" : " and ", "a perplexity of at most ",
                   format_number(*limits.max_ppl_delta), " more");
  }
  return text;
}

// The tensor that errs most by what counts: alone where that was measured, else the weighted error.
std::string weakest_text(const calib::MethodReport& method) {
  const calib::TensorReport* worst = nullptr;
  int at = 0;
  const auto cost = [](const calib::TensorReport& tensor) {
    return tensor.alone ? tensor.alone->divergence_mean : tensor.weighted.value_or(tensor.relative);
  };
  for (const calib::LayerReport& layer : method.layers) {
    for (const calib::TensorReport& tensor : layer.tensors) {
      if (worst != nullptr && cost(tensor) <= cost(*worst)) continue;
      worst = &tensor;
      at = layer.layer;
    }
  }
  if (worst == nullptr) return "";
  const std::string what = worst->alone ? concat("KL ", format_number(cost(*worst), 3), " when stored alone")
                                        : concat("relative error ", format_number(cost(*worst), 3));
  return concat("  ", method.name, ": layer ", at, ", ", worst->name, "s (", what, ")\n");
}

// The mean divergence of some of the positions after the prompt.
double mean_divergence(std::span<const calib::MethodScore> positions) {
  double sum = 0;
  for (const calib::MethodScore& score : positions) sum += score.divergence_mean;
  return sum / static_cast<double>(positions.size());
}

std::string decoding_text(const calib::ValidationReport& report) {
  const std::int64_t tokens = report.plan.generate;
  if (tokens == 0) return "";
  // A quarter at each end shows whether the damage grows.
  const std::size_t part = static_cast<std::size_t>(std::max<std::int64_t>(1, tokens / 4));
  Table table;
  table.add({"method", "KL mean", "+-", concat("first ", part), concat("last ", part), "same top-1 %"});
  for (const calib::MethodReport& method : report.methods) {
    if (is_exact(method)) continue;
    const calib::MethodScore& score = method.decoding->score;
    const std::span<const calib::MethodScore> positions = method.decoding->positions;
    table.add({method.name, fixed(score.divergence_mean, 5), fixed(score.divergence_stderr, 5),
               fixed(mean_divergence(positions.first(part)), 5),
               fixed(mean_divergence(positions.last(part)), 5), fixed(100 * score.top1_agreement, 2)});
  }
  return concat("\nDecoding ", format_count(tokens), " token", tokens == 1 ? "" : "s",
                " of the model's own after each window's beginning, one by one from the stored past:\n\n",
                table.text());
}

std::string passkey_text(const calib::ValidationReport& report) {
  if (report.plan.passkey.empty()) return "";
  Table table;
  std::vector<std::string> head = {"method"};
  for (const std::int64_t length : report.plan.passkey) head.push_back(format_count(length));
  table.add(head);
  for (const calib::MethodReport& method : report.methods) {
    std::vector<std::string> cells = {method.name};
    for (const calib::PasskeyReport& passkey : method.passkey)
      cells.push_back(concat(passkey.retrieved, "/", passkey.prompts));
    table.add(cells);
  }
  return concat("\nPasskeys found again, by the prompt's length in tokens:\n\n", table.text());
}

// What else is done than the text.
std::string more_text(const calib::ValidationPlan& plan) {
  std::string text;
  if (!plan.kernels.empty()) text += concat("Kernels run ", plan.kernels, ".\n");
  if (plan.generate > 0) text += concat("Then decodes ", plan.generate, " tokens of the model's own.\n");
  if (plan.passkey.empty()) return text;
  text += "Then asks for passkeys in prompts of ";
  for (std::size_t i = 0; i < plan.passkey.size(); ++i) text += concat(i == 0 ? "" : ", ", plan.passkey[i]);
  return text + " tokens.\n";
}

// Of a method whose slots are limited: the tensor that lost the most of its outliers.
std::string dropped_text(const calib::MethodReport& method) {
  const calib::TensorReport* worst = nullptr;
  int layer = 0;
  for (const calib::LayerReport& one : method.layers) {
    for (const calib::TensorReport& tensor : one.tensors) {
      if (tensor.outliers_dropped <= (worst == nullptr ? 0 : worst->outliers_dropped)) continue;
      worst = &tensor;
      layer = one.layer;
    }
  }
  if (worst == nullptr) return "";
  return concat("  ", method.name, ": layer ", layer, ", ", worst->name, "s (",
                fixed(100 * worst->outliers_dropped, 1), " %)\n");
}

}  // namespace

bool ValidationLimits::met_by(const calib::MethodReport& method) const {
  return (!max_kld || method.score.divergence_mean <= *max_kld) &&
         (!max_ppl_delta || method.perplexity_delta <= *max_ppl_delta);
}

const calib::MethodReport* smallest_within(const calib::ValidationReport& report,
                                           const ValidationLimits& limits) {
  const calib::MethodReport* smallest = nullptr;
  for (const calib::MethodReport& method : report.methods) {
    if (is_exact(method) || !limits.met_by(method)) continue;
    if (smallest == nullptr || method.bits_per_value < smallest->bits_per_value) smallest = &method;
  }
  return smallest;
}

std::string plan_text(const calib::ValidationPlan& plan) {
  std::string methods;
  for (const std::string& name : plan.methods) methods += (methods.empty() ? "" : ", ") + name;
  std::string text = concat("Validating ", plan.model, " in ", plan.dtype, ": ", plan.windows, " windows of ",
                            plan.seqlen, " tokens, ", plan.scored, " scored, protocol ", plan.protocol,
                            ", BOS ", plan.bos, ".\nMethods: ", methods, ".\n", more_text(plan), "Needs ",
                            format_bytes(plan.memory_bytes), " of memory and ");
  return text +
         concat(format_duration(plan.need.seconds_low), " to ", format_duration(plan.need.seconds_high),
                plan.need.disk_bytes > 0
                    ? concat(", and ", format_bytes(plan.need.disk_bytes), " of disk for hidden states")
                    : "",
                ".\n");
}

std::string report_text(const calib::ValidationReport& report, const ValidationLimits& limits) {
  Table table;
  table.add({"method", "bits/value", "perplexity", "change", "+-", "KL mean", "KL p99", "same top-1 %",
             "attention %", ""});
  for (const calib::MethodReport& method : report.methods) table.add(method_cells(method));
  std::string text = concat(report.plan.model, ", ", report.plan.windows, " windows of ", report.plan.seqlen,
                            " tokens, ", format_duration(report.seconds), "\n\n", table.text(), "\n");
  text += concat(
      "bits/value is all that a sequence stores. KL: how far each next-token distribution moves from fp's, "
      "in\n"
      "nats. +- is the standard error of the change over windows",
      report.plan.windows < 2 ? " (one window tells none)" : "",
      ".\nattention %: of fp's attention, what falls on the same tokens.\n");
  text += decoding_text(report) + passkey_text(report);
  std::string weakest;
  for (const calib::MethodReport& method : report.methods) weakest += weakest_text(method);
  if (!weakest.empty()) text += "\nThe tensor that suffers most:\n" + weakest;
  std::string dropped;
  for (const calib::MethodReport& method : report.methods) dropped += dropped_text(method);
  if (!dropped.empty()) text += "\nWhere most outliers found no slot:\n" + dropped;
  if (!limits.any()) return text;
  const calib::MethodReport* smallest = smallest_within(report, limits);
  return text + "\n" +
         (smallest == nullptr ? concat("None of these methods is within ", limits_text(limits), ".\n")
                              : concat("The smallest within ", limits_text(limits), ": ", smallest->name,
                                       ", ", fixed(smallest->bits_per_value, 2), " bits a value.\n"));
}

Json report_json(const calib::ValidationReport& report, const ValidationLimits& limits) {
  const calib::ValidationPlan& plan = report.plan;
  Json methods = Json::array();
  for (const calib::MethodReport& method : report.methods) methods.push_back(method_json(method));
  Json json = {{"model", plan.model},
               {"codebook", plan.codebook.empty() ? Json(nullptr) : Json(plan.codebook.string())},
               {"windows", plan.windows},
               {"seqlen", plan.seqlen},
               {"tokens", plan.tokens},
               {"scored", plan.scored},
               {"generate", plan.generate},
               {"passkey", plan.passkey},
               {"protocol", plan.protocol},
               {"bos", plan.bos},
               {"dtype", plan.dtype},
               {"kernels", plan.kernels.empty() ? Json(nullptr) : Json(plan.kernels)},
               {"methods", std::move(methods)},
               {"warnings", report.warnings},
               {"seconds", number(report.seconds)},
               {"memory_bytes", plan.memory_bytes}};
  if (limits.any()) {
    const calib::MethodReport* smallest = smallest_within(report, limits);
    json["smallest_within_limits"] = smallest == nullptr ? Json(nullptr) : Json(smallest->name);
  }
  return json;
}

}  // namespace kvcal::apps
