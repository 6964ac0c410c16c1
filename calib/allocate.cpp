#include "calib/allocate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "calib/allocate/knapsack.h"
#include "calib/cache_shape.h"
#include "calib/validate/cache_method.h"
#include "formats/datatype_choice.h"

namespace kvcal::calib {
namespace {

using base::concat;
using base::InvalidInput;
using base::WrongUsage;

// Points of the curve that the file keeps.
constexpr std::size_t kCurvePoints = 256;

/// One way to store a tensor.
struct TensorOption {
  formats::DatatypeChoice datatype;
  std::string method;
  std::int64_t bytes = 0;
  double divergence = 0;
};

/// A tensor, and the ways to store it that the options leave.
struct TensorItem {
  int layer = 0;
  formats::CachedTensor tensor;
  std::int64_t values = 0;  // of one sequence
  std::vector<TensorOption> options;
};

void check_options(const AllocationOptions& options) {
  if (options.bits_per_value.has_value() == options.bytes.has_value()) {
    throw WrongUsage(options.bytes ? "--bits-per-value and --bytes-at are two budgets; give one"
                                   : "give a budget: --bits-per-value B, or --bytes-at CONTEXT SIZE");
  }
  if (options.bits_per_value && !(*options.bits_per_value > 0 && *options.bits_per_value <= 16))
    throw WrongUsage(
        concat("--bits-per-value is ", *options.bits_per_value, ": expected more than 0, up to 16"));
  if (options.min_bits < 2 || options.min_bits > 4)
    throw WrongUsage(concat("--min-bits is ", options.min_bits, ": expected 2 to 4"));
  if (options.measure_all && options.measured.model.empty())
    throw WrongUsage("--measure-all measures with a model; name it with --model");
}

/// The items of a codebook, with bytes.
class Inventory {
 public:
  Inventory(const formats::Codebook& codebook, const AllocationOptions& options)
      : codebook_(codebook),
        options_(options),
        kept_(options.keep_layers.begin(), options.keep_layers.end()) {
    for (const int layer : kept_) {
      if (std::ranges::find(codebook.layers, layer, &formats::LayerCodebook::index) == codebook.layers.end())
        throw WrongUsage(
            concat("--keep-layers has ", layer, ", and ", options.codebook.string(), " has no such layer"));
    }
  }

  std::vector<TensorItem> items() {
    std::vector<TensorItem> items;
    for (const formats::LayerCodebook& layer : codebook_.layers) {
      for (const formats::TensorCodebook& tensor : layer.tensors) {
        const std::int64_t tokens = kept_tokens(layer.window, options_.context);
        const std::int64_t values = base::checked_multiply(tokens, tensor.tensor.channels(), "the cache");
        items.push_back({layer.index, tensor.tensor, values, {}});
        add_options(items.back(), tensor, tokens);
      }
    }
    return items;
  }

 private:
  void add_options(TensorItem& item, const formats::TensorCodebook& tensor, std::int64_t tokens) {
    if (kept_.contains(item.layer)) {
      item.options.push_back({{formats::kKeptBits, 0, false},
                              kFullPrecision,
                              base::checked_multiply(item.values, kHalfBytes, "the cache"),
                              0});
      return;
    }
    for (const formats::OutlierSet& set : tensor.outliers) {
      for (const formats::Datatype& datatype : set.datatypes) {
        if (datatype.bits < options_.min_bits || datatype.bits > 4) continue;
        const formats::DatatypeChoice choice{datatype.bits, set.fraction, false};
        const CacheMethod& method = find_method(choice.name() + (options_.paged ? kPagedSuffix : ""));
        const auto storage = method.storage(item.layer, item.tensor);
        item.options.push_back({choice, choice.name(), storage->expected_bytes(tokens), 0});
      }
    }
    if (!item.options.empty()) return;
    throw InvalidInput(concat(options_.codebook.string(), ": layer ", item.layer, ", ", item.tensor.name,
                              ": holds no datatype of ", options_.min_bits,
                              " to 4 bits; calibrate with --bits 2,3,4"));
  }

  const CacheMethod& find_method(const std::string& name) {
    std::unique_ptr<CacheMethod>& method = methods_[name];
    if (!method) method = make_method(name, &codebook_);
    return *method;
  }

  const formats::Codebook& codebook_;
  const AllocationOptions& options_;
  std::set<int> kept_;
  std::map<std::string, std::unique_ptr<CacheMethod>> methods_;
};

const formats::Datatype& datatype_of(const formats::Codebook& codebook, const TensorItem& item,
                                     const TensorOption& option) {
  const formats::TensorCodebook* tensor = codebook.find(item.layer, item.tensor.name);
  return *formats::require_datatype(item.layer, *tensor, option.datatype).datatype;
}

bool is_kept(const TensorOption& option) {
  return option.datatype.bits == formats::kKeptBits;
}

// By the file's own objectives.
void estimate(const formats::Codebook& codebook, const std::filesystem::path& file,
              std::vector<TensorItem>& items) {
  for (TensorItem& item : items) {
    for (TensorOption& option : item.options) {
      if (is_kept(option)) continue;
      const auto divergence = estimated_divergence(codebook.calibration, datatype_of(codebook, item, option));
      if (!divergence) {
        throw InvalidInput(
            concat(file.string(), ": layer ", item.layer, ", ", item.tensor.name,
                   ": was not fitted to sensitivities in the values' own units, so that nothing in the "
                   "file says what it costs; measure it: --model DIR --text FILE"));
      }
      option.divergence = *divergence;
    }
  }
}

/// The datatypes that every tensor that is not kept may have, in the order of the first one's options.
std::vector<formats::DatatypeChoice> common_datatypes(const std::vector<TensorItem>& items) {
  std::vector<formats::DatatypeChoice> common;
  bool is_first = true;
  for (const TensorItem& item : items) {
    if (is_kept(item.options.front())) continue;
    const auto has = [&](const formats::DatatypeChoice& choice) {
      return std::ranges::find(item.options, choice, &TensorOption::datatype) != item.options.end();
    };
    if (is_first) {
      for (const TensorOption& option : item.options) common.push_back(option.datatype);
    } else {
      std::erase_if(common, [&](const formats::DatatypeChoice& choice) { return !has(choice); });
    }
    is_first = false;
  }
  return common;
}

double bits_of(std::int64_t bytes, std::int64_t values) {
  return values == 0 ? 0 : 8 * static_cast<double>(bytes) / static_cast<double>(values);
}

std::int64_t all_values(const std::vector<TensorItem>& items) {
  std::int64_t values = 0;
  for (const TensorItem& item : items) values = base::checked_add(values, item.values, "the cache");
  return values;
}

// All tensors by one datatype; kept ones as they are.
UniformAllocation uniform(const std::vector<TensorItem>& items, const formats::DatatypeChoice& choice) {
  UniformAllocation all;
  all.method = choice.name();
  for (const TensorItem& item : items) {
    const auto found = std::ranges::find(item.options, choice, &TensorOption::datatype);
    const TensorOption& option = found == item.options.end() ? item.options.front() : *found;
    all.bytes += option.bytes;
    all.divergence += option.divergence;
  }
  all.bits_per_value = bits_of(all.bytes, all_values(items));
  return all;
}

std::vector<UniformAllocation> uniform_all(const std::vector<TensorItem>& items) {
  std::vector<UniformAllocation> all;
  for (const formats::DatatypeChoice& choice : common_datatypes(items)) all.push_back(uniform(items, choice));
  std::ranges::stable_sort(all, {}, &UniformAllocation::bytes);
  return all;
}

/// The divergences of a model, tensor by tensor.
class Measurement {
 public:
  Measurement(const formats::Codebook& codebook, const AllocationOptions& options, base::Progress& progress,
              ValidationListener* listener)
      : codebook_(codebook), options_(options), progress_(progress), listener_(listener) {}

  std::vector<std::string> measure(std::vector<TensorItem>& items, std::int64_t budget) const {
    ValidationOptions run = options_.measured;
    run.codebook = options_.codebook;
    run.per_layer_kl = true;
    run.methods.clear();
    if (options_.measure_all) {
      for (const formats::DatatypeChoice& choice : common_datatypes(items))
        run.methods.push_back(choice.name());
    } else if (const auto nearest = nearest_datatype(items, budget)) {
      run.methods.push_back(nearest->name());
    }
    if (run.methods.empty()) return {};  // everything is kept
    const ValidationReport report = validate(run, progress_, listener_);
    for (TensorItem& item : items)
      if (!is_kept(item.options.front())) apply(report, item);
    return report.warnings;
  }

 private:
  // The largest datatype that all tensors may have within the budget, else the smallest.
  static std::optional<formats::DatatypeChoice> nearest_datatype(const std::vector<TensorItem>& items,
                                                                 std::int64_t budget) {
    std::optional<formats::DatatypeChoice> nearest;
    std::int64_t its_bytes = 0;
    for (const formats::DatatypeChoice& choice : common_datatypes(items)) {
      const std::int64_t bytes = uniform(items, choice).bytes;
      const bool better = its_bytes > budget ? bytes < its_bytes : bytes <= budget && bytes > its_bytes;
      if (nearest && !better) continue;
      nearest = choice;
      its_bytes = bytes;
    }
    return nearest;
  }

  // Of what was not measured: as its objective stands to that of what was.
  void apply(const ValidationReport& report, TensorItem& item) const {
    std::map<std::string, double> measured;
    double of_objective = 0;
    for (const MethodReport& method : report.methods) {
      const auto option = std::ranges::find(item.options, method.name, &TensorOption::method);
      if (option == item.options.end()) continue;
      // A mean over positions; of a tensor that costs nothing, rounding may take it below 0.
      const double divergence = std::max(0.0, alone(method, item).divergence_mean);
      measured[method.name] = divergence;
      const double objective = datatype_of(codebook_, item, *option).objective;
      of_objective = objective > 0 ? divergence / objective : 0;
    }
    for (TensorOption& option : item.options) {
      const auto found = measured.find(option.method);
      option.divergence = found != measured.end()
                              ? found->second
                              : of_objective * datatype_of(codebook_, item, option).objective;
    }
  }

  static const MethodScore& alone(const MethodReport& method, const TensorItem& item) {
    const auto layer = std::ranges::find(method.layers, item.layer, &LayerReport::layer);
    if (layer != method.layers.end()) {
      const auto tensor = std::ranges::find(layer->tensors, item.tensor.name, &TensorReport::name);
      if (tensor != layer->tensors.end() && tensor->alone) return *tensor->alone;
    }
    throw InvalidInput(concat("the model caches no ", item.tensor.name, " in layer ", item.layer,
                              ", which the codebook holds"));
  }

  const formats::Codebook& codebook_;
  const AllocationOptions& options_;
  base::Progress& progress_;
  ValidationListener* listener_;
};

KnapsackItems knapsack_items(const std::vector<TensorItem>& items) {
  KnapsackItems all;
  for (const TensorItem& item : items) {
    all.emplace_back();
    for (const TensorOption& option : item.options) all.back().push_back({option.bytes, option.divergence});
  }
  return all;
}

std::int64_t budget_bytes(const AllocationOptions& options, std::int64_t values) {
  if (options.bytes) return *options.bytes;
  // As many bits as asked for print as asked for: the last byte is rounded up to.
  return static_cast<std::int64_t>(std::ceil(*options.bits_per_value / 8 * static_cast<double>(values)));
}

void check_budget(const AllocationOptions& options, std::int64_t budget, std::int64_t least,
                  std::int64_t values) {
  if (budget >= least) return;
  std::string text = options.bytes ? concat("a cache of ", options.context, " tokens in ", budget, " bytes")
                                   : concat(*options.bits_per_value, " bits per value");
  text += concat(" can't be met: the smallest that can is ");
  // Rounded up, so that what is printed can be given.
  const double bits = std::ceil(1e4 * bits_of(least, values)) / 1e4;
  text += options.bytes ? concat(least, " bytes (", bits, " bits per value)")
                        : concat(bits, " (", least, " bytes at ", options.context, " tokens)");
  if (!options.keep_layers.empty()) text += "; fewer --keep-layers take less";
  if (options.min_bits > 2) text += "; a lower --min-bits takes less";
  throw InvalidInput(text);
}

std::vector<float> stored_curve(const KnapsackItems& items, std::int64_t values) {
  const std::vector<KnapsackPoint> curve = knapsack_curve(items);
  std::vector<float> numbers;
  const std::size_t last = curve.size() - 1, points = std::min(curve.size(), kCurvePoints);
  for (std::size_t i = 0; i < points; ++i) {
    const KnapsackPoint& point = curve[points == 1 ? 0 : i * last / (points - 1)];
    numbers.push_back(static_cast<float>(bits_of(point.bytes, values)));
    numbers.push_back(static_cast<float>(std::max(0.0, point.cost)));
  }
  return numbers;
}

std::string options_json(const AllocationOptions& options) {
  nlohmann::json json;
  if (options.bits_per_value)
    json["bits_per_value"] = *options.bits_per_value;
  else
    json["bytes"] = *options.bytes;
  json["context"] = options.context;
  json["min_bits"] = options.min_bits;
  json["keep_layers"] = options.keep_layers;
  json["paged"] = options.paged;
  if (!options.measured.model.empty()) json["measured"] = options.measure_all ? "all" : "one";
  return json.dump();
}

TensorAllocation allocation_of(const TensorItem& item, const TensorOption& option) {
  const TensorOption& least = *std::ranges::min_element(item.options, {}, &TensorOption::bytes);
  return {{item.layer, item.tensor.name, option.datatype.bits, option.datatype.fraction, option.divergence},
          option.method,
          bits_of(option.bytes, item.values),
          bits_of(least.bytes, item.values),
          least.divergence};
}

Allocation choose(const std::vector<TensorItem>& items, std::int64_t budget,
                  const AllocationOptions& options) {
  const KnapsackItems knapsack = knapsack_items(items);
  const KnapsackChoice choice = choose_options(knapsack, budget);
  const std::int64_t values = all_values(items);
  Allocation allocation;
  allocation.budget_bytes = budget;
  allocation.lower_bound = choice.lower_bound;
  formats::Recipe& recipe = allocation.recipe;
  recipe.options_json = options_json(options);
  recipe.source = options.measured.model.empty() ? "estimated" : "measured";
  recipe.context = options.context;
  recipe.bytes = choice.bytes;
  recipe.bits_per_value = bits_of(choice.bytes, values);
  recipe.divergence = choice.cost;
  recipe.curve = stored_curve(knapsack, values);
  for (std::size_t i = 0; i < items.size(); ++i) {
    allocation.tensors.push_back(allocation_of(items[i], items[i].options[choice.options[i]]));
    recipe.tensors.push_back(allocation.tensors.back().recipe);
  }
  allocation.uniform = uniform_all(items);
  return allocation;
}

}  // namespace

Allocation allocate(const AllocationOptions& options, base::Progress& progress,
                    ValidationListener* listener) {
  check_options(options);
  formats::Codebook codebook = formats::read_known_codebook(options.codebook);
  codebook.recipe.reset();
  std::vector<TensorItem> items = Inventory(codebook, options).items();
  const std::int64_t values = all_values(items), budget = budget_bytes(options, values);
  check_budget(options, budget, smallest_bytes(knapsack_items(items)), values);
  std::vector<std::string> warnings;
  if (options.measured.model.empty())
    estimate(codebook, options.codebook, items);
  else
    warnings = Measurement(codebook, options, progress, listener).measure(items, budget);
  Allocation allocation = choose(items, budget, options);
  allocation.warnings = std::move(warnings);
  allocation.file = options.out.empty() ? options.codebook : options.out;
  codebook.recipe = allocation.recipe;
  formats::write_codebook(allocation.file, codebook);
  return allocation;
}

}  // namespace kvcal::calib
