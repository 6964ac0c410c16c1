#include "formats/codebook_diff.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "formats/internal/codebook_rules.h"

namespace kvcal::formats {
namespace {

using base::concat;
using nlohmann::json;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// |a - b| over the larger of the two; NaN equals NaN, and infinity itself.
double relative_difference(double left, double right, double scale) {
  if (left == right || (std::isnan(left) && std::isnan(right))) return 0;
  if (!std::isfinite(left) || !std::isfinite(right)) return kInfinity;
  return std::abs(left - right) / scale;
}

// Where in an array the two sides lie farthest apart, and by how much of the array's largest number.
struct WorstElement {
  std::size_t index = 0;
  double magnitude = 0;
};

WorstElement worst_element(std::span<const float> left, std::span<const float> right) {
  double scale = 0;
  for (const std::span<const float> side : {left, right}) {
    for (const float value : side) {
      if (std::isfinite(value)) scale = std::max(scale, std::abs(double{value}));
    }
  }
  WorstElement worst;
  for (std::size_t i = 0; i < left.size(); ++i) {
    const double magnitude = relative_difference(left[i], right[i], scale);
    if (magnitude > worst.magnitude) worst = {i, magnitude};
  }
  return worst;
}

// Collects what differs, numbers by more than the tolerance, in the order of the calls.
class Comparison {
 public:
  explicit Comparison(double tolerance) : tolerance_(tolerance) {}

  // What is compared from here on is of this layer.
  void enter_layer(int layer) { layer_ = layer; }

  void text(const std::string& path, const std::string& left, const std::string& right) {
    if (left != right) different(path, left, right);
  }

  void different(const std::string& path, DifferenceValue left, DifferenceValue right) {
    add({.path = path, .left = std::move(left), .right = std::move(right), .magnitude = kInfinity});
  }

  void number(const std::string& path, double left, double right) {
    const double magnitude = relative_difference(left, right, std::max(std::abs(left), std::abs(right)));
    if (is_above_tolerance(magnitude)) {
      add({.path = path, .left = left, .right = right, .magnitude = magnitude});
    }
  }

  // Counts, sizes and seeds are the same or not: no tolerance.
  void integer(const std::string& path, std::int64_t left, std::int64_t right) {
    if (left == right) return;
    const double a = static_cast<double>(left), b = static_cast<double>(right);
    add({.path = path,
         .left = left,
         .right = right,
         .magnitude = std::abs(a - b) / std::max(std::abs(a), std::abs(b))});
  }

  void array(const std::string& path, std::span<const float> left, std::span<const float> right,
             DifferenceColumn column = DifferenceColumn::none) {
    if (left.size() != right.size()) {
      different(path, concat(left.size(), " values"), concat(right.size(), " values"));
      return;
    }
    const WorstElement worst = worst_element(left, right);
    if (!is_above_tolerance(worst.magnitude)) return;
    add({.path = path,
         .index = static_cast<std::int64_t>(worst.index),
         .left = double{left[worst.index]},
         .right = double{right[worst.index]},
         .magnitude = worst.magnitude,
         .column = column});
  }

  void one_sided(const std::string& path, bool in_left) {
    const DifferenceValue present = std::string("present");
    different(path, in_left ? present : DifferenceValue(), in_left ? DifferenceValue() : present);
  }

  [[nodiscard]] std::vector<Difference> take() { return std::move(differences_); }

 private:
  [[nodiscard]] bool is_above_tolerance(double magnitude) const { return magnitude > tolerance_; }

  void add(Difference difference) {
    difference.layer = layer_;
    differences_.push_back(std::move(difference));
  }

  double tolerance_;
  std::optional<int> layer_;
  std::vector<Difference> differences_;
};

// The elements of both sides by a key; the call gets null where a side has none.
template <typename Key, typename Element, typename KeyOf, typename Visit>
void for_each_pair(const std::vector<Element>& left, const std::vector<Element>& right, const KeyOf& key_of,
                   const Visit& visit) {
  std::map<Key, std::pair<const Element*, const Element*>> pairs;
  for (const Element& element : left) pairs[key_of(element)].first = &element;
  for (const Element& element : right) pairs[key_of(element)].second = &element;
  for (const auto& [key, pair] : pairs) visit(key, pair.first, pair.second);
}

// Lists, objects, true, false and null as their JSON text; so is an integer beyond int64.
DifferenceValue field_value(const json& object, const std::string& name) {
  if (!object.contains(name)) return {};
  const json& value = object.at(name);
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return value.get<double>();
  const bool fits = !value.is_number_unsigned() ||
                    value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()};
  if (value.is_number_integer() && fits) return value.get<std::int64_t>();
  return value.dump();
}

// Fields of two JSON objects one by one, so that the message names the option; anything else as a whole.
void compare_json(Comparison& compare, const std::string& path, const std::string& left,
                  const std::string& right) {
  const json left_value = json::parse(left, nullptr, false);
  const json right_value = json::parse(right, nullptr, false);
  if (!left_value.is_object() || !right_value.is_object()) {
    if (left_value.is_discarded() || left_value != right_value) compare.text(path, left, right);
    return;
  }
  std::set<std::string> names;
  for (const json* object : {&left_value, &right_value}) {
    for (const auto& [name, value] : object->items()) names.insert(name);
  }
  for (const std::string& name : names) {
    const bool in_both = left_value.contains(name) && right_value.contains(name);
    if (in_both && left_value.at(name) == right_value.at(name)) continue;
    compare.different(path + "/" + name, field_value(left_value, name), field_value(right_value, name));
  }
}

void compare_model(Comparison& compare, const ModelInfo& left, const ModelInfo& right) {
  compare.text("/model@name", left.name, right.name);
  compare.text("/model@architecture", left.architecture, right.architecture);
  compare.text("/model@config_sha256", left.config_sha256, right.config_sha256);
  compare.text("/model@weights_sha256", left.weights_sha256, right.weights_sha256);
  compare.integer("/model@num_layers", left.num_layers, right.num_layers);
  compare.integer("/model@num_attention_heads", left.num_attention_heads, right.num_attention_heads);
  compare.integer("/model@num_kv_heads", left.num_kv_heads, right.num_kv_heads);
  compare.integer("/model@head_dim", left.head_dim, right.head_dim);
  compare_json(compare, "/model@rope", left.rope_json, right.rope_json);
}

std::string texts_in_short(const std::vector<TextInfo>& texts) {
  std::string result;
  for (const TextInfo& text : texts) {
    result += concat(result.empty() ? "" : ", ", text.name, " (", text.sha256.substr(0, 12), ")");
  }
  return result.empty() ? "none" : result;
}

void compare_calibration(Comparison& compare, const CalibrationInfo& left, const CalibrationInfo& right) {
  if (left.texts != right.texts) {
    compare.different("/calibration@texts", texts_in_short(left.texts), texts_in_short(right.texts));
  }
  compare.integer("/calibration@revision", left.revision, right.revision);
  compare.text("/calibration@tokens_sha256", left.tokens_sha256, right.tokens_sha256);
  compare.integer("/calibration@samples", left.samples, right.samples);
  compare.integer("/calibration@seqlen", left.seqlen, right.seqlen);
  compare.integer("/calibration@tokens", left.tokens, right.tokens);
  compare.text("/calibration@bos", left.bos, right.bos);
  compare.integer("/calibration@sinks", left.sinks, right.sinks);
  compare.integer("/calibration@seed", left.seed, right.seed);
  compare.text("/calibration@dtype", left.dtype, right.dtype);
  compare.text("/calibration@device", left.device, right.device);
  compare.text("/calibration@value_scope", left.value_scope, right.value_scope);
  compare.text("/calibration@sensitivity", left.sensitivity, right.sensitivity);
  compare.text("/calibration@fisher_scale", left.fisher_scale, right.fisher_scale);
  compare_json(compare, "/calibration@options", left.options_json, right.options_json);
  compare.number("/calibration@loss", left.loss, right.loss);
}

void compare_datatype(Comparison& compare, const std::string& path, const Datatype& left,
                      const Datatype& right, DifferenceColumn column) {
  const std::string centroids = path + "/centroids";
  compare.array(centroids, left.centroids, right.centroids, column);
  compare.number(centroids + "@qnorm_scale", left.qnorm_scale, right.qnorm_scale);
  compare.number(centroids + "@qnorm_offset", left.qnorm_offset, right.qnorm_offset);
  compare.number(centroids + "@objective", left.objective, right.objective);
  compare.number(centroids + "@lower_bound", left.lower_bound, right.lower_bound);
  compare.text(centroids + "@weights", left.weights, right.weights);
  if (left.has_ranges() && right.has_ranges()) {
    compare.array(path + "/scale", left.scale, right.scale);
    compare.array(path + "/zero", left.zero, right.zero);
    compare.array(path + "/histogram", left.histogram, right.histogram);
  } else if (left.has_ranges() != right.has_ranges()) {
    compare.one_sided(path + "/scale", left.has_ranges());
  }
}

// The columns of the summary that a tensor's thresholds and centroids stand in.
struct TensorColumns {
  DifferenceColumn thresholds = DifferenceColumn::none;
  DifferenceColumn centroids = DifferenceColumn::none;
};

TensorColumns columns_of(const std::string& tensor) {
  if (tensor == "key") return {DifferenceColumn::key_thresholds, DifferenceColumn::key_centroids};
  if (tensor == "value") return {DifferenceColumn::none, DifferenceColumn::value_centroids};
  return {};
}

void compare_outliers(Comparison& compare, const std::string& path, const OutlierSet& left,
                      const OutlierSet& right, const TensorColumns& columns) {
  compare.array(path + "/lower", left.lower, right.lower, columns.thresholds);
  compare.array(path + "/upper", left.upper, right.upper, columns.thresholds);
  // A file of schema 1.0 has none, which says nothing of the fit.
  if (!left.histogram.empty() && !right.histogram.empty())
    compare.array(path + "/histogram", left.histogram, right.histogram);
  for_each_pair<int>(
      left.datatypes, right.datatypes, [](const Datatype& datatype) { return datatype.bits; },
      [&](int bits, const Datatype* a, const Datatype* b) {
        const std::string here = concat(path, "/nuq", bits);
        if (a != nullptr && b != nullptr) {
          compare_datatype(compare, here, *a, *b, columns.centroids);
        } else {
          compare.one_sided(here, a != nullptr);
        }
      });
}

void compare_description(Comparison& compare, const std::string& path, const CachedTensor& left,
                         const CachedTensor& right) {
  compare.integer(path + "@heads", left.heads, right.heads);
  compare.integer(path + "@dim", left.dim, right.dim);
  compare.text(path + "@thresholds", std::string(threshold_scope_name(left.thresholds)),
               std::string(threshold_scope_name(right.thresholds)));
}

void compare_sets(Comparison& compare, const std::string& path, const std::vector<OutlierSet>& left,
                  const std::vector<OutlierSet>& right, const TensorColumns& columns) {
  for_each_pair<double>(
      left, right, [](const OutlierSet& set) { return set.fraction; },
      [&](double fraction, const OutlierSet* a, const OutlierSet* b) {
        const std::string here = concat(path, "/", outlier_group_name(fraction));
        if (a != nullptr && b != nullptr) {
          compare_outliers(compare, here, *a, *b, columns);
        } else {
          compare.one_sided(here, a != nullptr);
        }
      });
}

void compare_magnitudes(Comparison& compare, const std::string& tensor, const TensorMagnitudes& left,
                        const TensorMagnitudes& right) {
  const auto compare_kind = [&](const std::string& path, const Magnitudes& a, const Magnitudes& b) {
    for (const auto& [name, group] : {std::pair{"channel", &Magnitudes::channel},
                                      {"head", &Magnitudes::head},
                                      {"tensor", &Magnitudes::tensor}}) {
      const std::string here = concat(path, kMagnitudes, "/", name);
      compare.array(here + "_quantiles", (a.*group).quantiles, (b.*group).quantiles);
      compare.array(here + "_best", (a.*group).best, (b.*group).best);
    }
  };
  const auto compare_optional = [&](const std::string& path, const std::optional<Magnitudes>& a,
                                    const std::optional<Magnitudes>& b) {
    if (a && b) compare_kind(path, *a, *b);
    if (a.has_value() != b.has_value()) compare.one_sided(path + kMagnitudes, a.has_value());
  };
  compare_kind(tensor, left.cached, right.cached);
  compare_optional(tensor + kRotated, left.rotated, right.rotated);
  compare_optional(tensor + kEnvelope, left.envelope, right.envelope);
}

void compare_tensor(Comparison& compare, const std::string& path, const TensorCodebook& left,
                    const TensorCodebook& right) {
  compare.array(path + "/fisher_channel", left.fisher_channel, right.fisher_channel);
  compare.number(path + "@threshold_shift", left.halves.threshold_shift, right.halves.threshold_shift);
  compare.number(path + "@datatype_excess", left.halves.datatype_excess, right.halves.datatype_excess);
  compare.integer(path + "@rotation_block", left.rotation_block, right.rotation_block);
  compare_sets(compare, path, left.outliers, right.outliers, columns_of(left.tensor.name));
  compare_sets(compare, path + kWithSinks, left.with_sinks, right.with_sinks, {});
  compare_sets(compare, path + kRotated, left.rotated, right.rotated, {});
  // As the histograms: files of older schemas have none.
  if (left.magnitudes && right.magnitudes)
    compare_magnitudes(compare, path, *left.magnitudes, *right.magnitudes);
}

void compare_layer(Comparison& compare, const std::string& path, const LayerCodebook& left,
                   const LayerCodebook& right) {
  // Sizes go by the path that they have in both files; else, by the tensor's.
  const bool have_kv_heads = left.has_kv_heads() && right.has_kv_heads();
  if (have_kv_heads) {
    compare.integer(path + "@kv_heads", left.key().tensor.heads, right.key().tensor.heads);
    compare.integer(path + "@key_dim", left.key().tensor.dim, right.key().tensor.dim);
    compare.integer(path + "@value_dim", left.value().tensor.dim, right.value().tensor.dim);
  }
  compare_json(compare, path + "@rope", left.rope_json, right.rope_json);
  compare.integer(path + "@window", left.window, right.window);
  using Rank = std::pair<bool, std::string>;
  for_each_pair<Rank>(
      left.tensors, right.tensors,
      [](const TensorCodebook& codebook) { return tensor_rank(codebook.tensor); },
      [&](const Rank& rank, const TensorCodebook* a, const TensorCodebook* b) {
        const auto& [is_other, name] = rank;
        const std::string here = concat(path, "/", name);
        if (a == nullptr || b == nullptr) {
          compare.one_sided(here, a != nullptr);
          return;
        }
        if (is_other || !have_kv_heads) compare_description(compare, here, a->tensor, b->tensor);
        compare_tensor(compare, here, *a, *b);
      });
}

void compare_recipe(Comparison& compare, const Recipe& left, const Recipe& right) {
  compare_json(compare, "/recipe@options", left.options_json, right.options_json);
  compare.text("/recipe@source", left.source, right.source);
  compare.integer("/recipe@context", left.context, right.context);
  compare.integer("/recipe@bytes", left.bytes, right.bytes);
  compare.number("/recipe@bits_per_value", left.bits_per_value, right.bits_per_value);
  compare.number("/recipe@divergence", left.divergence, right.divergence);
  for_each_pair<std::string>(
      left.tensors, right.tensors, [](const TensorRecipe& tensor) { return recipe_path(tensor); },
      [&](const std::string& path, const TensorRecipe* a, const TensorRecipe* b) {
        if (a == nullptr || b == nullptr) {
          compare.one_sided(path, a != nullptr);
          return;
        }
        compare.integer(path + "@bits", a->bits, b->bits);
        compare.number(path + "@fraction", a->fraction, b->fraction);
        compare.number(path + "@divergence", a->divergence, b->divergence);
      });
}

bool same_shapes(const LayerCodebook& left, const LayerCodebook& right) {
  const auto shapes = [](const LayerCodebook& layer) {
    std::map<std::string, CachedTensor> by_name;
    for (const TensorCodebook& codebook : layer.tensors) by_name[codebook.tensor.name] = codebook.tensor;
    return by_name;
  };
  return shapes(left) == shapes(right);
}

bool same_config(const ModelInfo& left, const ModelInfo& right) {
  const auto config = [](const ModelInfo& model) {
    return std::tie(model.config_sha256, model.architecture, model.num_layers, model.num_attention_heads,
                    model.num_kv_heads, model.head_dim);
  };
  return config(left) == config(right);
}

// Null for DifferenceColumn::none.
std::optional<double>* column_of(LayerDifference& layer, DifferenceColumn column) {
  switch (column) {
    case DifferenceColumn::key_thresholds:
      return &layer.key_thresholds;
    case DifferenceColumn::key_centroids:
      return &layer.key_centroids;
    case DifferenceColumn::value_centroids:
      return &layer.value_centroids;
    case DifferenceColumn::none:
      break;
  }
  return nullptr;
}

}  // namespace

std::optional<double> LayerDifference::largest() const {
  // An empty optional is less than any number.
  return std::max({key_thresholds, key_centroids, value_centroids});
}

ModelMatch match_models(const Codebook& left, const Codebook& right) {
  ModelMatch match;
  match.config = same_config(left.model, right.model);
  match.weights = left.model.weights_sha256 == right.model.weights_sha256;
  for_each_pair<int>(
      left.layers, right.layers, [](const LayerCodebook& layer) { return layer.index; },
      [&](int, const LayerCodebook* a, const LayerCodebook* b) {
        // A file may hold some of a model's layers only.
        if (a != nullptr && b != nullptr && !same_shapes(*a, *b)) match.config = false;
      });
  return match;
}

std::vector<LayerDifference> summarise_layers(std::span<const Difference> differences) {
  std::map<int, LayerDifference> layers;
  for (const Difference& difference : differences) {
    if (!difference.layer) continue;
    LayerDifference& layer = layers[*difference.layer];
    layer.layer = *difference.layer;
    std::optional<double>* column = column_of(layer, difference.column);
    // Not the infinity of an array of another size.
    if (column == nullptr || !std::isfinite(difference.magnitude)) continue;
    *column = std::max(*column, std::optional(difference.magnitude));
  }
  std::vector<LayerDifference> result;
  for (const auto& [index, layer] : layers) result.push_back(layer);
  return result;
}

const Difference* largest_difference(std::span<const Difference> differences) {
  const Difference* largest = nullptr;
  for (const Difference& difference : differences) {
    if (!difference.layer || !std::isfinite(difference.magnitude)) continue;
    if (largest == nullptr || difference.magnitude > largest->magnitude) largest = &difference;
  }
  return largest;
}

std::vector<Difference> diff_codebooks(const Codebook& left, const Codebook& right, double tolerance) {
  Comparison compare(tolerance);
  compare.integer("/@schema_major", left.schema_major, right.schema_major);
  compare.integer("/@schema_minor", left.schema_minor, right.schema_minor);
  compare_model(compare, left.model, right.model);
  compare_calibration(compare, left.calibration, right.calibration);
  if (left.recipe && right.recipe) {
    compare_recipe(compare, *left.recipe, *right.recipe);
  } else if (left.recipe.has_value() != right.recipe.has_value()) {
    compare.one_sided(kRecipe, left.recipe.has_value());
  }
  for_each_pair<int>(
      left.layers, right.layers, [](const LayerCodebook& layer) { return layer.index; },
      [&](int index, const LayerCodebook* a, const LayerCodebook* b) {
        const std::string path = layer_path(index);
        compare.enter_layer(index);
        if (a != nullptr && b != nullptr) {
          compare_layer(compare, path, *a, *b);
        } else {
          compare.one_sided(path, a != nullptr);
        }
      });
  return compare.take();
}

}  // namespace kvcal::formats
