#include "formats/codebook_diff.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <utility>

#include "base/error.h"

namespace kvcal::formats {
namespace {

using base::concat;
using nlohmann::json;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr const char* kAbsent = "absent";

std::string number_text(double value) {
  char text[40];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return text;
}

// |a - b| over the larger of the two; NaN equals NaN, and infinity itself.
double relative_difference(double left, double right, double scale) {
  if (left == right || (std::isnan(left) && std::isnan(right))) return 0;
  if (!std::isfinite(left) || !std::isfinite(right)) return kInfinity;
  return std::abs(left - right) / scale;
}

// Collects what differs by more than the tolerance, in the order of the calls.
class Comparison {
 public:
  explicit Comparison(double tolerance) : tolerance_(tolerance) {}

  void text(const std::string& path, const std::string& left, const std::string& right) {
    if (left != right) different(path, left, right);
  }

  void different(const std::string& path, const std::string& left, const std::string& right) {
    add(path, left, right, kInfinity);
  }

  void number(const std::string& path, double left, double right) {
    const double scale = std::max(std::abs(left), std::abs(right));
    add(path, number_text(left), number_text(right), relative_difference(left, right, scale));
  }

  void integer(const std::string& path, std::int64_t left, std::int64_t right) {
    if (left == right) return;
    const double magnitude =
        std::abs(static_cast<double>(left) - static_cast<double>(right)) /
        std::max(std::abs(static_cast<double>(left)), std::abs(static_cast<double>(right)));
    add(path, std::to_string(left), std::to_string(right), magnitude);
  }

  void array(const std::string& path, std::span<const float> left, std::span<const float> right) {
    if (left.size() != right.size()) {
      add(path, concat(left.size(), " values"), concat(right.size(), " values"), kInfinity);
      return;
    }
    double scale = 0;
    for (const std::span<const float> side : {left, right}) {
      for (const float value : side) {
        if (std::isfinite(value)) scale = std::max(scale, std::abs(double{value}));
      }
    }
    double worst = 0;
    std::size_t at = 0;
    for (std::size_t i = 0; i < left.size(); ++i) {
      const double difference = relative_difference(left[i], right[i], scale);
      if (difference > worst) {
        worst = difference;
        at = i;
      }
    }
    if (worst > 0) {
      const std::string index = concat("[", at, "] ");
      add(path, index + number_text(left[at]), index + number_text(right[at]), worst);
    }
  }

  void one_sided(const std::string& path, bool in_left) {
    add(path, in_left ? "present" : kAbsent, in_left ? kAbsent : "present", kInfinity);
  }

  [[nodiscard]] std::vector<Difference> take() { return std::move(differences_); }

 private:
  void add(const std::string& path, const std::string& left, const std::string& right, double magnitude) {
    if (magnitude > tolerance_) differences_.push_back({path, left, right, magnitude});
  }

  double tolerance_;
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
  const auto field = [](const json& object, const std::string& name) {
    return object.contains(name) ? object.at(name).dump() : std::string(kAbsent);
  };
  for (const std::string& name : names) {
    compare.text(path + "/" + name, field(left_value, name), field(right_value, name));
  }
}

void compare_model(Comparison& compare, const ModelInfo& left, const ModelInfo& right) {
  compare.text("/model/name", left.name, right.name);
  compare.text("/model/architecture", left.architecture, right.architecture);
  compare.text("/model/config_sha256", left.config_sha256, right.config_sha256);
  compare.text("/model/weights_sha256", left.weights_sha256, right.weights_sha256);
  compare.integer("/model/num_layers", left.num_layers, right.num_layers);
  compare.integer("/model/num_attention_heads", left.num_attention_heads, right.num_attention_heads);
  compare.integer("/model/num_kv_heads", left.num_kv_heads, right.num_kv_heads);
  compare.integer("/model/head_dim", left.head_dim, right.head_dim);
  compare_json(compare, "/model/rope", left.rope_json, right.rope_json);
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
    compare.different("/calibration/texts", texts_in_short(left.texts), texts_in_short(right.texts));
  }
  compare.integer("/calibration/revision", left.revision, right.revision);
  compare.text("/calibration/tokens_sha256", left.tokens_sha256, right.tokens_sha256);
  compare.integer("/calibration/samples", left.samples, right.samples);
  compare.integer("/calibration/seqlen", left.seqlen, right.seqlen);
  compare.integer("/calibration/tokens", left.tokens, right.tokens);
  compare.text("/calibration/bos", left.bos, right.bos);
  compare.integer("/calibration/sinks", left.sinks, right.sinks);
  compare.integer("/calibration/seed", left.seed, right.seed);
  compare.text("/calibration/dtype", left.dtype, right.dtype);
  compare.text("/calibration/device", left.device, right.device);
  compare.text("/calibration/value_scope", left.value_scope, right.value_scope);
  compare.text("/calibration/sensitivity", left.sensitivity, right.sensitivity);
  compare.text("/calibration/fisher_scale", left.fisher_scale, right.fisher_scale);
  compare_json(compare, "/calibration/options", left.options_json, right.options_json);
  compare.number("/calibration/loss", left.loss, right.loss);
}

void compare_datatype(Comparison& compare, const std::string& path, const Datatype& left,
                      const Datatype& right) {
  compare.array(path + "/centroids", left.centroids, right.centroids);
  compare.number(path + "/qnorm_scale", left.qnorm_scale, right.qnorm_scale);
  compare.number(path + "/qnorm_offset", left.qnorm_offset, right.qnorm_offset);
  compare.number(path + "/objective", left.objective, right.objective);
  compare.number(path + "/lower_bound", left.lower_bound, right.lower_bound);
  compare.text(path + "/weights", left.weights, right.weights);
}

void compare_outliers(Comparison& compare, const std::string& path, const OutlierSet& left,
                      const OutlierSet& right) {
  compare.array(path + "/lower", left.lower, right.lower);
  compare.array(path + "/upper", left.upper, right.upper);
  for_each_pair<int>(
      left.datatypes, right.datatypes, [](const Datatype& datatype) { return datatype.bits; },
      [&](int bits, const Datatype* a, const Datatype* b) {
        const std::string here = concat(path, "/nuq", bits);
        if (a != nullptr && b != nullptr) {
          compare_datatype(compare, here, *a, *b);
        } else {
          compare.one_sided(here, a != nullptr);
        }
      });
}

void compare_description(Comparison& compare, const std::string& path, const CachedTensor& left,
                         const CachedTensor& right) {
  compare.integer(path + "/heads", left.heads, right.heads);
  compare.integer(path + "/dim", left.dim, right.dim);
  compare.text(path + "/thresholds", std::string(threshold_scope_name(left.thresholds)),
               std::string(threshold_scope_name(right.thresholds)));
}

void compare_tensor(Comparison& compare, const std::string& path, const TensorCodebook& left,
                    const TensorCodebook& right) {
  compare.array(path + "/fisher_channel", left.fisher_channel, right.fisher_channel);
  compare.number(path + "/halves/threshold_shift", left.halves.threshold_shift, right.halves.threshold_shift);
  compare.number(path + "/halves/datatype_excess", left.halves.datatype_excess, right.halves.datatype_excess);
  for_each_pair<double>(
      left.outliers, right.outliers, [](const OutlierSet& set) { return set.fraction; },
      [&](double fraction, const OutlierSet* a, const OutlierSet* b) {
        const std::string here = concat(path, "/", outlier_group_name(fraction));
        if (a != nullptr && b != nullptr) {
          compare_outliers(compare, here, *a, *b);
        } else {
          compare.one_sided(here, a != nullptr);
        }
      });
}

void compare_layer(Comparison& compare, const std::string& path, const LayerCodebook& left,
                   const LayerCodebook& right) {
  // Sizes go by the path that they have in both files; else, by the tensor's.
  const bool have_kv_heads = left.has_kv_heads() && right.has_kv_heads();
  if (have_kv_heads) {
    compare.integer(path + "/kv_heads", left.key().tensor.heads, right.key().tensor.heads);
    compare.integer(path + "/key_dim", left.key().tensor.dim, right.key().tensor.dim);
    compare.integer(path + "/value_dim", left.value().tensor.dim, right.value().tensor.dim);
  }
  compare_json(compare, path + "/rope", left.rope_json, right.rope_json);
  compare.integer(path + "/window", left.window, right.window);
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

}  // namespace

std::vector<Difference> diff_codebooks(const Codebook& left, const Codebook& right, double tolerance) {
  Comparison compare(tolerance);
  compare.integer("/schema_major", left.schema_major, right.schema_major);
  compare.integer("/schema_minor", left.schema_minor, right.schema_minor);
  compare_model(compare, left.model, right.model);
  compare_calibration(compare, left.calibration, right.calibration);
  for_each_pair<int>(
      left.layers, right.layers, [](const LayerCodebook& layer) { return layer.index; },
      [&](int index, const LayerCodebook* a, const LayerCodebook* b) {
        char name[32];
        std::snprintf(name, sizeof(name), "/layers/%04d", index);
        if (a != nullptr && b != nullptr) {
          compare_layer(compare, name, *a, *b);
        } else {
          compare.one_sided(name, a != nullptr);
        }
      });
  return compare.take();
}

}  // namespace kvcal::formats
