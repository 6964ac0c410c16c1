#include "apps/allocation_view.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "apps/codebook_view.h"
#include "apps/sizes.h"
#include "apps/terminal.h"
#include "apps/text_table.h"
#include "base/error.h"

namespace kvcal::apps {
namespace {

using base::concat;

// Tensors that are printed unless all are asked for.
constexpr std::size_t kShown = 8;

std::string head_text(const calib::Allocation& allocation) {
  const formats::Recipe& recipe = allocation.recipe;
  const bool is_best = allocation.lower_bound >= recipe.divergence * (1 - 1e-9);
  return labelled_text(
      {{"Recipe in", allocation.file.string()},
       {"Bits", concat(fixed(recipe.bits_per_value, 3), " per value: ", format_bytes(recipe.bytes), " at ",
                       plural(recipe.context, "token"), ", of ", format_bytes(allocation.budget_bytes))},
       {"KL", concat(format_number(recipe.divergence, 3), " nats a token, ",
                     recipe.source == "measured" ? "measured tensor by tensor"
                                                 : "estimated from the file's objectives",
                     is_best ? "; no choice within the budget has less"
                             : concat("; none within the budget has less than ",
                                      format_number(allocation.lower_bound, 3)))}});
}

/// Methods by bits, with what tensors of each name got them.
std::string counts_text(const calib::Allocation& allocation) {
  std::vector<std::string> names;
  std::map<std::string, std::map<std::string, std::int64_t>> counts;
  std::map<std::string, double> divergence, bits;
  for (const calib::TensorAllocation& tensor : allocation.tensors) {
    const std::string& name = tensor.recipe.tensor;
    if (std::ranges::find(names, name) == names.end()) names.push_back(name);
    ++counts[tensor.method][name];
    divergence[tensor.method] += tensor.recipe.divergence;
    bits[tensor.method] = tensor.bits_per_value;
  }
  std::vector<std::string> methods;
  for (const auto& [method, tensors] : counts) methods.push_back(method);
  std::ranges::stable_sort(methods, {}, [&](const std::string& method) { return bits[method]; });
  std::vector<TextTable::Column> columns = {{"method", Align::kLeft}};
  for (const std::string& name : names) columns.push_back({name + "s"});
  columns.push_back({"KL"});
  TextTable table(columns);
  for (const std::string& method : methods) {
    std::vector<std::string> cells = {method};
    for (const std::string& name : names) cells.push_back(std::to_string(counts[method][name]));
    cells.push_back(format_number(divergence[method], 3));
    table.add_row(std::move(cells));
  }
  return table.text();
}

std::string uniform_text(const calib::Allocation& allocation) {
  TextTable table({{"method", Align::kLeft}, {"bits/value"}, {"KL"}});
  for (const calib::UniformAllocation& method : allocation.uniform)
    table.add_row({method.method, fixed(method.bits_per_value, 3), format_number(method.divergence, 3)});
  table.add_row(
      {"recipe", fixed(allocation.recipe.bits_per_value, 3), format_number(allocation.recipe.divergence, 3)});
  return table.text();
}

std::string tensors_text(const calib::Allocation& allocation, bool all) {
  std::vector<const calib::TensorAllocation*> tensors;
  for (const calib::TensorAllocation& tensor : allocation.tensors) tensors.push_back(&tensor);
  if (!all) {
    std::ranges::stable_sort(tensors, std::greater(),
                             [](const calib::TensorAllocation* tensor) { return tensor->least_divergence; });
    tensors.resize(std::min(tensors.size(), kShown));
  }
  TextTable table(
      {{"layer"}, {"tensor", Align::kLeft}, {"method", Align::kLeft}, {"bits/value"}, {"KL"}, {"at least"}});
  for (const calib::TensorAllocation* tensor : tensors) {
    table.add_row({std::to_string(tensor->recipe.layer), tensor->recipe.tensor, tensor->method,
                   fixed(tensor->bits_per_value, 3), format_number(tensor->recipe.divergence, 3),
                   format_number(tensor->least_divergence, 3)});
  }
  return table.text();
}

}  // namespace

std::string allocation_text(const calib::Allocation& allocation, bool all) {
  std::string text = head_text(allocation);
  text += concat("\n", bold("How many tensors got what"), "\n", counts_text(allocation));
  if (!allocation.uniform.empty())
    text += concat("\n", bold("All tensors alike, and the recipe"), "\n", uniform_text(allocation));
  text += concat("\n", bold(all ? "Every tensor" : "Tensors that would cost most"), "\n",
                 tensors_text(allocation, all), "\n");
  text += labelled_text(
      {{"bits/value", "all that a sequence stores, by number"},
       {"KL",
        "how far next-token distributions move, in nats, when the tensor alone is stored so; sums "
        "come near to what all do together"},
       {"at least", "the KL that the tensor would cost by the fewest bytes it may have: why it got more"}});
  text += concat("\nSee what it costs all together:\n  kvcal validate --codebook ", allocation.file.string(),
                 " \\\n      --model DIR --text FILE --methods recipe\n");
  return text;
}

Json allocation_json(const calib::Allocation& allocation) {
  Json json = recipe_json(allocation.recipe);
  json["codebook"] = allocation.file.string();
  json["budget_bytes"] = allocation.budget_bytes;
  json["kl_lower_bound"] = allocation.lower_bound;
  Json tensors = Json::array(), uniform = Json::array();
  for (const calib::TensorAllocation& tensor : allocation.tensors) {
    tensors.push_back({{"layer", tensor.recipe.layer},
                       {"tensor", tensor.recipe.tensor},
                       {"method", tensor.method},
                       {"bits", tensor.recipe.bits},
                       {"outliers", tensor.recipe.fraction},
                       {"bits_per_value", tensor.bits_per_value},
                       {"kl", tensor.recipe.divergence},
                       {"least_bits_per_value", tensor.least_bits},
                       {"least_kl", tensor.least_divergence}});
  }
  for (const calib::UniformAllocation& method : allocation.uniform) {
    uniform.push_back({{"method", method.method},
                       {"bytes", method.bytes},
                       {"bits_per_value", method.bits_per_value},
                       {"kl", method.divergence}});
  }
  json["tensors"] = std::move(tensors);
  json["uniform"] = std::move(uniform);
  json["warnings"] = allocation.warnings;
  return json;
}

}  // namespace kvcal::apps
