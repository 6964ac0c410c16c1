#include "calib/cache_plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "calib/validate/cache_method.h"

namespace kvcal::calib {
namespace {

using base::concat;

constexpr std::int64_t kLongestContext = std::numeric_limits<std::int32_t>::max();

// What KVQuant's tables count for an outlier: its fp16 value and a 16-bit index.
constexpr double kKvquantOutlierBytes = 4;

/// Layers of one kind, and how many of them there are.
struct LayerGroup {
  CachedLayer layer;
  int index = 0;  // of the first
  std::int64_t count = 0;
};

std::vector<LayerGroup> group_layers(const CacheShape& shape) {
  std::vector<LayerGroup> groups;
  for (std::size_t i = 0; i < shape.layers.size(); ++i) {
    const auto same = std::ranges::find(groups, shape.layers[i], &LayerGroup::layer);
    if (same != groups.end())
      ++same->count;
    else
      groups.push_back({shape.layers[i], static_cast<int>(i), 1});
  }
  return groups;
}

// What one of `gpus` holds of the shape: its share of every tensor's heads, at least one.
CacheShape share_of_gpu(CacheShape shape, int gpus) {
  for (CachedLayer& layer : shape.layers)
    for (formats::CachedTensor& tensor : layer.tensors) tensor.heads = (tensor.heads + gpus - 1) / gpus;
  return shape;
}

formats::Datatype blank_datatype(int bits) {
  formats::Datatype datatype;
  datatype.bits = bits;
  const int last = (1 << bits) - 1;
  for (int i = 0; i <= last; ++i)
    datatype.centroids.push_back(2 * static_cast<float>(i) / static_cast<float>(last) - 1);
  return datatype;
}

formats::TensorCodebook blank_tensor(const formats::CachedTensor& tensor,
                                     const std::vector<formats::DatatypeChoice>& datatypes) {
  formats::TensorCodebook blank;
  blank.tensor = tensor;
  const auto channels = static_cast<std::size_t>(tensor.channels());
  for (const formats::DatatypeChoice& choice : datatypes) {
    auto set = std::ranges::find(blank.outliers, choice.fraction, &formats::OutlierSet::fraction);
    if (set == blank.outliers.end()) {
      blank.outliers.push_back({choice.fraction, {}, {}, {}, {}});
      set = blank.outliers.end() - 1;
      if (tensor.thresholds == formats::ThresholdScope::channel) {
        set->lower.assign(channels, -1);
        set->upper.assign(channels, 1);
      }
    }
    set->datatypes.push_back(blank_datatype(choice.bits));
  }
  return blank;
}

void add_recipe(formats::Codebook& codebook, const LayerGroup& group) {
  const CachedLayer& layer = group.layer;
  if (layer.recipe.empty()) return;
  if (!codebook.recipe) codebook.recipe.emplace();
  for (std::size_t i = 0; i < layer.tensors.size(); ++i) {
    codebook.recipe->tensors.push_back({.layer = group.index,
                                        .tensor = layer.tensors[i].name,
                                        .bits = layer.recipe[i].bits,
                                        .fraction = layer.recipe[i].fraction});
  }
}

// A codebook that serves the datatypes for such a cache: sizes hang on no number in it.
formats::Codebook blank_codebook(const CacheShape& shape,
                                 const std::vector<formats::DatatypeChoice>& datatypes) {
  formats::Codebook codebook;
  codebook.calibration.sinks = shape.sinks;
  codebook.calibration.value_scope = shape.values_per_head ? "head" : "token";
  for (const LayerGroup& group : group_layers(shape)) {
    formats::LayerCodebook layer;
    layer.index = group.index;
    for (const formats::CachedTensor& tensor : group.layer.tensors)
      layer.tensors.push_back(blank_tensor(tensor, datatypes));
    codebook.layers.push_back(std::move(layer));
    add_recipe(codebook, group);
  }
  return codebook;
}

// "nuq3-1%..." as a datatype; nothing where the name is of another family.
std::optional<formats::DatatypeChoice> datatype_of(const std::string& name) {
  formats::DatatypeChoice choice;
  double percent = 0;
  char sign = 0;
  const int read = std::sscanf(name.c_str(), "nuq%1d-%lf%c", &choice.bits, &percent, &sign);
  if (read < 1 || choice.bits < 2 || choice.bits > 4) return std::nullopt;
  if (read == 3 && sign == '%' && percent > 0 && percent < 50) choice.fraction = percent / 100;
  return choice;
}

// The shape's datatypes and those that methods and its recipe name.
std::vector<formats::DatatypeChoice> wanted_datatypes(const CacheShape& shape,
                                                      const std::vector<std::string>& methods) {
  std::vector<formats::DatatypeChoice> wanted = shape.datatypes;
  const auto want = [&](const formats::DatatypeChoice& choice) {
    if (std::ranges::find(wanted, choice) == wanted.end()) wanted.push_back(choice);
  };
  for (const std::string& name : methods)
    if (const auto choice = datatype_of(name)) want(*choice);
  for (const CachedLayer& layer : shape.layers)
    for (const formats::DatatypeChoice& choice : layer.recipe)
      if (choice.bits != formats::kKeptBits) want(choice);
  return wanted;
}

std::vector<std::string> default_names(const CacheShape& shape, const formats::Codebook& blank) {
  std::vector<std::string> names = {kFullPrecision, "fp8"};
  const std::vector<std::string> served = served_methods(&blank);
  for (const formats::DatatypeChoice& choice : shape.datatypes) {
    names.push_back(choice.name());
    const std::string paged = choice.name() + kPagedSuffix;
    if (std::ranges::find(served, paged) != served.end()) names.push_back(paged);
  }
  if (blank.recipe) names.emplace_back(kRecipeMethod);
  return names;
}

/// The bytes of one sequence by one method.
class SequenceSize {
 public:
  SequenceSize(const std::string& method, const CacheShape& shape, const formats::Codebook& blank) {
    const std::unique_ptr<CacheMethod> made = make_method(method, &blank);
    for (const LayerGroup& group : group_layers(shape)) {
      for (const formats::CachedTensor& tensor : group.layer.tensors)
        parts_.push_back({group, tensor.channels(), made ? made->storage(group.index, tensor) : nullptr});
    }
  }

  [[nodiscard]] std::int64_t bytes(std::int64_t context) const {
    std::int64_t sum = 0;
    for (const Part& part : parts_) {
      const std::int64_t tokens = kept_tokens(part.group.layer.window, context);
      sum += part.group.count *
             (part.storage ? part.storage->expected_bytes(tokens) : tokens * part.channels * kHalfBytes);
    }
    return sum;
  }
  [[nodiscard]] std::int64_t values(std::int64_t context) const {
    std::int64_t sum = 0;
    for (const Part& part : parts_)
      sum += part.group.count * kept_tokens(part.group.layer.window, context) * part.channels;
    return sum;
  }
  [[nodiscard]] std::int64_t static_bytes() const {
    std::int64_t sum = 0;
    for (const Part& part : parts_)
      if (part.storage) sum += part.group.count * part.storage->static_bytes();
    return sum;
  }

 private:
  struct Part {
    LayerGroup group;
    std::int64_t channels;
    std::unique_ptr<TensorStorage> storage;  // null: fp16
  };
  std::vector<Part> parts_;
};

// Of codes and outliers alone; nothing where KVQuant has no such method.
std::optional<double> kvquant_bits_per_value(const std::string& name) {
  if (name == kFullPrecision) return 8.0 * kHalfBytes;
  const auto choice = datatype_of(name);
  const bool other_record = name.ends_with(kPagedSuffix) || name.ends_with(kKernelsSuffix);
  if (!choice || other_record || name.ends_with("-nosink")) return std::nullopt;
  return choice->bits + 8 * kKvquantOutlierBytes * choice->fraction;
}

// The largest context of which `fits` is true, 0 where of none; contexts that fit are those up to it.
std::int64_t search_context(const std::function<bool(std::int64_t)>& fits) {
  std::int64_t fit = 0, beyond = kLongestContext + 1;
  while (beyond - fit > 1) {
    const std::int64_t middle = fit + (beyond - fit) / 2;
    (fits(middle) ? fit : beyond) = middle;
  }
  return fit;
}

// What is left on a GPU, and which context would fit on it.
void fit_on_gpu(MethodSize& size, const SequenceSize& share, const CachePlanOptions& options,
                std::int64_t weights_per_gpu) {
  size.total_bytes_per_gpu =
      base::checked_add(size.cache_bytes_per_gpu, weights_per_gpu, "weights and cache");
  if (!options.gpu_memory_bytes) return;
  size.margin_bytes = *options.gpu_memory_bytes - *size.total_bytes_per_gpu;
  const std::int64_t room = *options.gpu_memory_bytes - weights_per_gpu - share.static_bytes();
  const std::int64_t of_sequence = room < 0 ? -1 : room / options.batch;
  const std::int64_t largest =
      search_context([&](std::int64_t context) { return share.bytes(context) <= of_sequence; });
  size.any_context = largest == kLongestContext;
  if (!size.any_context) size.largest_context = largest;
}

MethodSize measure(const std::string& name, const SequenceSize& whole, const SequenceSize& share,
                   const CacheModel& model, const CachePlanOptions& options) {
  MethodSize size;
  size.name = name;
  const std::int64_t values = whole.values(options.context);
  const std::int64_t of_sequence = whole.bytes(options.context);
  size.bits_per_value =
      values == 0 ? 0 : 8.0 * static_cast<double>(of_sequence) / static_cast<double>(values);
  size.cache_bytes = base::checked_multiply(of_sequence, options.batch, "the cache of all sequences");
  size.static_bytes = whole.static_bytes();
  if (const auto bits = kvquant_bits_per_value(name))
    size.kvquant_bytes = *bits / 8 * static_cast<double>(values) * static_cast<double>(options.batch);
  size.cache_bytes_per_gpu =
      base::checked_multiply(share.bytes(options.context), options.batch, "the cache of all sequences") +
      share.static_bytes();
  if (model.weights.bytes)
    fit_on_gpu(size, share, options, (*model.weights.bytes + options.gpus - 1) / options.gpus);
  return size;
}

std::vector<std::string> warnings_of(const CacheModel& model, const CachePlanOptions& options) {
  std::vector<std::string> warnings;
  const CacheShape& shape = model.cache;
  if (shape.max_positions > 0 && options.context > shape.max_positions) {
    warnings.push_back(concat(shape.model, " was trained for ", shape.max_positions, " positions, not ",
                              options.context, ": sizes hold, answers may not"));
  }
  int fewest_heads = std::numeric_limits<int>::max();
  for (const CachedLayer& layer : shape.layers)
    for (const formats::CachedTensor& tensor : layer.tensors)
      fewest_heads = std::min(fewest_heads, tensor.heads);
  if (options.gpus > fewest_heads && !shape.layers.empty()) {
    warnings.push_back(
        concat(options.gpus, " GPUs share out ", fewest_heads, " kv heads: some hold the same ones"));
  }
  if (options.gpu_memory_bytes && !model.weights.bytes)
    warnings.push_back("the size of the weights is not known; --weights says it");
  return warnings;
}

void check_options(const CachePlanOptions& options) {
  const auto check = [](std::int64_t value, std::int64_t least, std::int64_t most, const char* name) {
    if (value < least || value > most)
      throw base::WrongUsage(concat(name, " is ", value, ": expected ", least, " to ", most));
  };
  check(options.context, 1, kLongestContext, "--context");
  check(options.batch, 1, 1 << 20, "--batch");
  check(options.gpus, 1, 1 << 16, "--gpus");
}

}  // namespace

std::optional<bool> MethodSize::fits() const {
  if (!margin_bytes) return std::nullopt;
  return *margin_bytes >= 0;
}

CachePlan plan_cache(const CacheModel& model, const CachePlanOptions& options) {
  check_options(options);
  CachePlan plan{model.cache, model.weights, options, kPageTokens, {}, warnings_of(model, options)};
  const CacheShape share_shape = share_of_gpu(model.cache, options.gpus);
  const std::vector<formats::DatatypeChoice> datatypes = wanted_datatypes(model.cache, options.methods);
  const formats::Codebook blank = blank_codebook(model.cache, datatypes);
  const formats::Codebook share_blank = blank_codebook(share_shape, datatypes);
  const std::vector<std::string> names =
      options.methods.empty() ? default_names(model.cache, blank) : options.methods;
  for (const std::string& name : names) {
    const SequenceSize whole(name, model.cache, blank), share(name, share_shape, share_blank);
    plan.methods.push_back(measure(name, whole, share, model, options));
  }
  return plan;
}

}  // namespace kvcal::calib
