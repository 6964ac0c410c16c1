#include "apps/cache_plan_view.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "apps/sizes.h"
#include "apps/terminal.h"
#include "apps/text_table.h"
#include "base/error.h"

namespace kvcal::apps {
namespace {

using base::concat;

constexpr double kGibibyte = 1 << 30;

// Digits enough to tell two methods apart: 0.0132, 1.32, 13.2, 132.
std::string gibibytes(double bytes) {
  const double size = std::abs(bytes) / kGibibyte;
  const int digits = size >= 100 || size == 0 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : size >= 0.1 ? 3 : 4;
  return fixed(bytes / kGibibyte, digits);
}

template <typename Number>
Json optional_json(const std::optional<Number>& value) {
  return value ? Json(*value) : Json(nullptr);
}

/// A number that all keys and values share; nothing where they differ.
template <typename Of>
std::optional<int> shared_number(const calib::CacheShape& shape, Of of) {
  std::optional<int> shared;
  for (const calib::CachedLayer& layer : shape.layers) {
    for (const formats::CachedTensor& tensor : layer.tensors) {
      if (shared && *shared != of(tensor)) return std::nullopt;
      shared = of(tensor);
    }
  }
  return shared;
}

std::optional<int> kv_heads(const calib::CacheShape& shape) {
  return shared_number(shape, [](const formats::CachedTensor& tensor) { return tensor.heads; });
}

std::optional<int> head_dim(const calib::CacheShape& shape) {
  return shared_number(shape, [](const formats::CachedTensor& tensor) { return tensor.dim; });
}

// "32 layers, 8 kv heads of 128, 32 of them with a window of 4,096"
std::string shape_text(const calib::CacheShape& shape) {
  std::string text =
      concat(shape.architecture, ", ", plural(static_cast<std::int64_t>(shape.layers.size()), "layer"));
  const auto heads = kv_heads(shape), dim = head_dim(shape);
  if (heads && dim) text += concat(", ", plural(*heads, "kv head"), " of ", *dim);
  std::int64_t windows = 0, window = 0;
  for (const calib::CachedLayer& layer : shape.layers) {
    if (layer.window == 0) continue;
    ++windows;
    window = std::max(window, layer.window);
  }
  if (windows == 0) return text;
  const bool all = windows == static_cast<std::int64_t>(shape.layers.size());
  return concat(text, ", ", all ? "" : concat(windows, " of them with "), "a window of ",
                format_count(window), " tokens");
}

std::string weights_text(const calib::WeightsSize& weights) {
  const std::string parameters =
      weights.parameters
          ? *weights.parameters >= 1000000000
                ? concat(fixed(static_cast<double>(*weights.parameters) / 1e9, 2), " billion parameters")
                : concat(fixed(static_cast<double>(*weights.parameters) / 1e6, 2), " million parameters")
          : "";
  if (!weights.bytes)
    return concat("of unknown size", parameters.empty() ? "" : ": " + parameters, "; --weights says it");
  std::string text = format_bytes(*weights.bytes);
  if (weights.source == "option") return text + ", as --weights says";
  return concat(text, ": ", parameters, " in ", weights.dtype);
}

std::string question_text(const calib::CachePlanOptions& options) {
  std::string text =
      concat(plural(options.context, "token"),
             options.batch == 1 ? "" : concat(" in each of ", plural(options.batch, "sequence")));
  if (options.gpus > 1) text += concat(", on ", options.gpus, " GPUs");
  if (options.gpu_memory_bytes)
    text += concat(options.gpus > 1 ? " of " : ", on a GPU of ", format_bytes(*options.gpu_memory_bytes));
  return text;
}

std::string context_text(const calib::MethodSize& size) {
  if (size.any_context) return "any";
  if (!size.largest_context) return "-";
  return *size.largest_context == 0 ? "none" : format_count(*size.largest_context);
}

bool knows_total(const calib::CachePlan& plan) {
  return plan.weights.bytes.has_value();
}
bool asks_fit(const calib::CachePlan& plan) {
  return knows_total(plan) && plan.options.gpu_memory_bytes;
}

std::string table_text(const calib::CachePlan& plan) {
  std::vector<TextTable::Column> columns = {{"method", Align::kLeft}, {"bits/value"}, {"cache"}};
  if (knows_total(plan)) columns.push_back({plan.options.gpus > 1 ? "per GPU" : "total"});
  if (asks_fit(plan)) columns.insert(columns.end(), {{"left"}, {"largest"}});
  TextTable table(columns);
  for (const calib::MethodSize& size : plan.methods) {
    std::vector<std::string> cells = {size.name, fixed(size.bits_per_value, 2),
                                      gibibytes(static_cast<double>(size.cache_bytes))};
    if (size.total_bytes_per_gpu) cells.push_back(gibibytes(static_cast<double>(*size.total_bytes_per_gpu)));
    if (size.margin_bytes) {
      const std::string left = gibibytes(static_cast<double>(*size.margin_bytes));
      cells.push_back(*size.margin_bytes < 0 ? attention(left) : left);
      cells.push_back(context_text(size));
    }
    table.add_row(std::move(cells));
  }
  return table.text();
}

std::string columns_text(const calib::CachePlan& plan) {
  const bool several = plan.options.gpus > 1;
  std::vector<Labelled> columns = {
      {"bits/value", "all that a sequence stores, by number"},
      {"cache", concat("of ", plan.options.batch == 1 ? "the sequence" : "all sequences", ", in GiB")}};
  if (knows_total(plan)) {
    columns.push_back(several ? Labelled{"per GPU", "cache, tables and weights on each, in GiB"}
                              : Labelled{"total", "cache, tables and weights, in GiB"});
  }
  if (asks_fit(plan)) {
    columns.push_back(
        {"left", "of the GPU's memory, in GiB, for activations and the engine itself; below 0: missing"});
    columns.push_back({"largest", "context, in tokens, with nothing left"});
  }
  const bool paged = std::ranges::any_of(
      plan.methods, [](const calib::MethodSize& size) { return size.name.ends_with("-paged"); });
  if (paged) {
    columns.push_back({"-paged", concat("in a serving engine's pages of ", plan.page_tokens,
                                        " tokens, the last one padded")});
  }
  return labelled_text(columns);
}

}  // namespace

std::string cache_plan_text(const calib::CachePlan& plan) {
  std::string text = labelled_text({{"Model", concat(plan.shape.model, " (", shape_text(plan.shape), ")")},
                                    {"Weights", weights_text(plan.weights)},
                                    {"Context", question_text(plan.options)}});
  return concat(text, "\n", table_text(plan), "\n", columns_text(plan));
}

Json cache_plan_json(const calib::CachePlan& plan) {
  const calib::CachePlanOptions& options = plan.options;
  Json methods = Json::array();
  for (const calib::MethodSize& size : plan.methods) {
    methods.push_back({{"name", size.name},
                       {"bits_per_value", size.bits_per_value},
                       {"cache_bytes", size.cache_bytes},
                       {"static_bytes", size.static_bytes},
                       {"kvquant_bytes", optional_json(size.kvquant_bytes)},
                       {"cache_bytes_per_gpu", size.cache_bytes_per_gpu},
                       {"total_bytes_per_gpu", optional_json(size.total_bytes_per_gpu)},
                       {"fits", optional_json(size.fits())},
                       {"margin_bytes", optional_json(size.margin_bytes)},
                       {"largest_context", optional_json(size.largest_context)},
                       {"any_context", size.any_context}});
  }
  std::int64_t window = 0;
  for (const calib::CachedLayer& layer : plan.shape.layers) window = std::max(window, layer.window);
  return {{"model", plan.shape.model},
          {"architecture", plan.shape.architecture},
          {"layers", plan.shape.layers.size()},
          {"kv_heads", optional_json(kv_heads(plan.shape))},
          {"head_dim", optional_json(head_dim(plan.shape))},
          {"window", window},
          {"max_positions", plan.shape.max_positions},
          {"parameters", optional_json(plan.weights.parameters)},
          {"weights_bytes", optional_json(plan.weights.bytes)},
          {"weights_dtype", plan.weights.dtype},
          {"weights_from", plan.weights.source},
          {"context", options.context},
          {"batch", options.batch},
          {"gpus", options.gpus},
          {"gpu_memory_bytes", optional_json(options.gpu_memory_bytes)},
          {"sinks", plan.shape.sinks},
          {"page_tokens", plan.page_tokens},
          {"methods", std::move(methods)},
          {"warnings", plan.warnings}};
}

}  // namespace kvcal::apps
