// The half of validation_view.h that people read: tables of at most kColumns columns.
#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "apps/sizes.h"
#include "apps/terminal.h"
#include "apps/text_table.h"
#include "apps/validation_view.h"
#include "base/error.h"
#include "calib/validate/method_names.h"

namespace kvcal::apps {
namespace {

using base::concat;

// A perplexity, or a difference of two. A large one is a method that destroys the model: its digits behind the
// point say nothing and would make the table too wide.
std::string perplexity_text(double value) {
  constexpr double kLarge = 1000;
  return fixed(value, std::abs(value) < kLarge ? 3 : 0);
}

bool is_exact(const calib::MethodReport& method) {
  return method.name == calib::kFullPrecision;
}

bool is_within_noise(const calib::MethodReport& method) {
  return !is_exact(method) && std::abs(method.perplexity_delta) < 2 * method.perplexity_delta_stderr;
}

bool any_within_noise(const calib::ValidationReport& report) {
  return std::ranges::any_of(report.methods, is_within_noise);
}

// With room for the mark where one of the changes has it, so that the digits stay below each other.
std::string change_text(const calib::MethodReport& method, bool marks) {
  const std::string sign = method.perplexity_delta < 0 ? "" : "+";
  const std::string mark = !marks ? "" : is_within_noise(method) ? "*" : " ";
  return sign + perplexity_text(method.perplexity_delta) + mark;
}

std::string quality_text(const calib::ValidationReport& report) {
  const bool marks = any_within_noise(report);
  TextTable table({{"method", Align::kLeft},
                   {"bits/value"},
                   {"perplexity"},
                   {marks ? "change " : "change"},
                   {"+-"},
                   {"KL mean"}});
  for (const calib::MethodReport& method : report.methods) {
    const calib::MethodScore& score = method.score;
    std::vector<std::string> cells = {method.name, fixed(method.bits_per_value, 2),
                                      perplexity_text(score.perplexity)};
    if (!is_exact(method)) {
      cells.insert(cells.end(), {change_text(method, marks), perplexity_text(method.perplexity_delta_stderr),
                                 fixed(score.divergence_mean, 5)});
    }
    table.add_row(std::move(cells));
  }
  std::vector<Labelled> columns = {{"bits/value", "all that a sequence stores, by number"},
                                   {"perplexity", "exp of the mean -log p of the scored tokens"},
                                   {"change", "of the perplexity, from fp's"},
                                   {"+-", "standard error of the change over windows"},
                                   {"KL mean", "how far next-token distributions move, in nats"}};
  if (report.plan.windows < 2) columns[3].text = "the change's error: one window tells none";
  if (marks) columns.push_back({"*", "within noise: less than twice its +-"});
  return concat(table.text(), "\n", labelled_text(columns));
}

std::string agreement_text(const calib::ValidationReport& report) {
  TextTable table({{"method", Align::kLeft}, {"KL p99"}, {"same top-1 %"}, {"attention %"}});
  for (const calib::MethodReport& method : report.methods) {
    if (is_exact(method)) continue;
    const calib::MethodScore& score = method.score;
    table.add_row({method.name, fixed(score.divergence_p99, 4), fixed(100 * score.top1_agreement, 2),
                   method.attention_agreement ? fixed(100 * *method.attention_agreement, 2) : "-"});
  }
  if (table.empty()) return "";
  return concat("\n", table.text(), "\n",
                labelled_text({{"KL p99", "one token in 100 moves further than this"},
                               {"same top-1 %", "tokens where both choose the same next one"},
                               {"attention %", "fp's attention that falls on the same tokens"}}));
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

std::string verdict_text(const calib::ValidationReport& report, const ValidationLimits& limits) {
  if (!limits.any()) return "";
  const calib::MethodReport* smallest = smallest_within(report, limits);
  const std::string verdict = smallest == nullptr
                                  ? attention("None of these methods is within the limits.")
                                  : concat("The smallest within the limits: ", smallest->name, ", ",
                                           fixed(smallest->bits_per_value, 2), " bits a value.");
  return concat("\n", hanging(concat("Limits: ", limits_text(limits), ".")), "\n", verdict, "\n");
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
  const std::string what = worst->alone ? concat("KL ", format_number(cost(*worst), 3), " alone")
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
  TextTable table({{"method", Align::kLeft}, {"KL mean"}, {"+-"}, {"first"}, {"last"}, {"same top-1 %"}});
  for (const calib::MethodReport& method : report.methods) {
    if (is_exact(method)) continue;
    const calib::MethodScore& score = method.decoding->score;
    const std::span<const calib::MethodScore> positions = method.decoding->positions;
    table.add_row({method.name, fixed(score.divergence_mean, 5), fixed(score.divergence_stderr, 5),
                   fixed(mean_divergence(positions.first(part)), 5),
                   fixed(mean_divergence(positions.last(part)), 5), fixed(100 * score.top1_agreement, 2)});
  }
  const std::string what =
      concat("Decoding ", format_count(tokens), " token", tokens == 1 ? "" : "s",
             " of the model's own after each window's beginning, one by one from the stored past:");
  const std::string ends = part == 1 ? std::string("the first and the last token")
                                     : concat("the first and the last ", format_count(part), " tokens");
  return concat("\n", wrapped(what), "\n\n", table.text(), "\n",
                labelled_text({{"first, last", concat("KL mean of ", ends)}}));
}

TextTable passkey_table(const calib::ValidationReport& report, std::size_t first, std::size_t count) {
  std::vector<TextTable::Column> columns = {{"method", Align::kLeft}};
  for (std::size_t i = first; i < first + count; ++i)
    columns.push_back({format_count(report.plan.passkey[i])});
  TextTable table(std::move(columns));
  for (const calib::MethodReport& method : report.methods) {
    std::vector<std::string> cells = {method.name};
    for (const calib::PasskeyReport& passkey : std::span(method.passkey).subspan(first, count))
      cells.push_back(concat(passkey.retrieved, "/", passkey.prompts));
    table.add_row(std::move(cells));
  }
  return table;
}

std::string passkey_text(const calib::ValidationReport& report) {
  const std::size_t lengths = report.plan.passkey.size();
  if (lengths == 0) return "";
  std::string text = "\nPasskeys found again, by the prompt's length in tokens:\n";
  for (std::size_t first = 0, count = 0; first < lengths; first += count) {
    count = lengths - first;  // or as many as fit beside each other
    while (count > 1 && !passkey_table(report, first, count).fits()) --count;
    text += "\n" + passkey_table(report, first, count).text();
  }
  return text;
}

// What else is done than the text.
std::string more_text(const calib::ValidationPlan& plan) {
  std::string text;
  const auto add = [&text](const std::string& sentence) { text += hanging(sentence) + "\n"; };
  if (!plan.kernels.empty()) add(concat("Kernels run ", plan.kernels, "."));
  if (plan.generate > 0) add(concat("Then decodes ", plan.generate, " tokens of the model's own."));
  if (plan.passkey.empty()) return text;
  std::string lengths;
  for (const std::int64_t length : plan.passkey) lengths += concat(lengths.empty() ? "" : ", ", length);
  add(concat("Then asks for passkeys in prompts of ", lengths, " tokens."));
  return text;
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

// "", or the heading and the lines below it.
std::string section(const std::string& heading, const std::string& lines) {
  return lines.empty() ? "" : concat("\n", bold(heading), "\n", lines);
}

}  // namespace

std::string plan_text(const calib::ValidationPlan& plan) {
  std::string methods;
  for (const std::string& name : plan.methods) methods += (methods.empty() ? "" : ", ") + name;
  std::string text = concat(hanging(concat("Validating ", plan.model, " in ", plan.dtype, ": ", plan.windows,
                                           " windows of ", plan.seqlen, " tokens, ", plan.scored,
                                           " scored, protocol ", plan.protocol, ", BOS ", plan.bos, ".")),
                            "\n", hanging(concat("Methods: ", methods, ".")), "\n", more_text(plan), "Needs ",
                            format_bytes(plan.memory_bytes), " of memory and ");
  text +=
      concat(format_duration(plan.need.seconds_low), " to ", format_duration(plan.need.seconds_high), ".\n");
  if (plan.need.disk_bytes > 0)
    text += concat("Needs ", format_bytes(plan.need.disk_bytes), " of disk for hidden states.\n");
  return text;
}

std::string report_text(const calib::ValidationReport& report, const ValidationLimits& limits) {
  std::string weakest, dropped;
  for (const calib::MethodReport& method : report.methods) {
    weakest += weakest_text(method);
    dropped += dropped_text(method);
  }
  const std::string head = concat(report.plan.model, ", ", report.plan.windows, " windows of ",
                                  report.plan.seqlen, " tokens, ", format_duration(report.seconds));
  return concat(hanging(head), "\n\n", quality_text(report), agreement_text(report), decoding_text(report),
                passkey_text(report), section("The tensor that suffers most:", weakest),
                section("Where most outliers found no slot:", dropped), verdict_text(report, limits));
}

}  // namespace kvcal::apps
