#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "formats/codebook.h"
#include "formats/internal/codebook_rules.h"
#include "formats/internal/hdf5_tree.h"

namespace kvcal::formats {
namespace {

using base::concat;

/// Fills a tree group by group.
class Encoder {
 public:
  Hdf5Tree encode(const Codebook& codebook) {
    set("/", "format", hdf5_text(kCodebookFormat));
    set("/", "schema_major", hdf5_integer(kCodebookSchemaMajor));
    set("/", "schema_minor", hdf5_integer(kCodebookSchemaMinor));
    set("/", "created_by", hdf5_text(codebook.created_by));
    encode_model(codebook.model);
    encode_calibration(codebook.calibration);
    tree_.groups.insert("/layers");
    for (const LayerCodebook& layer : codebook.layers) encode_layer(layer);
    if (codebook.recipe) encode_recipe(*codebook.recipe);
    set("/", "complete", hdf5_byte(1));
    set("/", "content_sha256", hdf5_text(content_sha256(tree_)));
    return std::move(tree_);
  }

 private:
  void set(std::string_view object, std::string_view name, Hdf5Value value) {
    tree_.values.emplace(attribute_key(object, name), std::move(value));
  }

  void encode_model(const ModelInfo& model) {
    tree_.groups.insert("/model");
    set("/model", "name", hdf5_text(model.name));
    set("/model", "architecture", hdf5_text(model.architecture));
    set("/model", "config_sha256", hdf5_text(model.config_sha256));
    set("/model", "weights_sha256", hdf5_text(model.weights_sha256));
    set("/model", "num_layers", hdf5_integer(model.num_layers));
    set("/model", "num_attention_heads", hdf5_integer(model.num_attention_heads));
    set("/model", "num_kv_heads", hdf5_integer(model.num_kv_heads));
    set("/model", "head_dim", hdf5_integer(model.head_dim));
    set("/model", "rope", hdf5_text(model.rope_json));
  }

  void encode_calibration(const CalibrationInfo& calibration) {
    tree_.groups.insert("/calibration");
    set("/calibration", "revision", hdf5_integer(calibration.revision));
    set("/calibration", "options", hdf5_text(calibration.options_json));
    set("/calibration", "texts", hdf5_text(texts_json(calibration.texts)));
    set("/calibration", "tokens_sha256", hdf5_text(calibration.tokens_sha256));
    set("/calibration", "samples", hdf5_integer(calibration.samples));
    set("/calibration", "seqlen", hdf5_integer(calibration.seqlen));
    set("/calibration", "tokens", hdf5_integer(calibration.tokens));
    set("/calibration", "bos", hdf5_text(calibration.bos));
    set("/calibration", "sinks", hdf5_integer(calibration.sinks));
    set("/calibration", "seed", hdf5_integer(calibration.seed));
    set("/calibration", "dtype", hdf5_text(calibration.dtype));
    set("/calibration", "device", hdf5_text(calibration.device));
    set("/calibration", "value_scope", hdf5_text(calibration.value_scope));
    set("/calibration", "sensitivity", hdf5_text(calibration.sensitivity));
    set("/calibration", "fisher_scale", hdf5_text(calibration.fisher_scale));
    set("/calibration", "loss", hdf5_real(calibration.loss));
  }

  void encode_recipe(const Recipe& recipe) {
    tree_.groups.insert(kRecipe);
    set(kRecipe, "options", hdf5_text(recipe.options_json));
    set(kRecipe, "source", hdf5_text(recipe.source));
    set(kRecipe, "context", hdf5_integer(recipe.context));
    set(kRecipe, "bytes", hdf5_integer(recipe.bytes));
    set(kRecipe, "bits_per_value", hdf5_real(recipe.bits_per_value));
    set(kRecipe, "divergence", hdf5_real(recipe.divergence));
    tree_.values.emplace(concat(kRecipe, "/curve"), hdf5_matrix(recipe.curve, kCurveColumns));
    for (const TensorRecipe& tensor : recipe.tensors) {
      const std::string path = recipe_path(tensor);
      tree_.groups.insert({recipe_path(tensor.layer), path});
      set(path, "bits", hdf5_integer(tensor.bits));
      set(path, "fraction", hdf5_real(tensor.fraction));
      set(path, "divergence", hdf5_real(tensor.divergence));
    }
  }

  void encode_layer(const LayerCodebook& layer) {
    const std::string path = layer_path(layer.index);
    tree_.groups.insert(path);
    const bool has_kv_heads = layer.has_kv_heads();
    if (has_kv_heads) {
      set(path, "kv_heads", hdf5_integer(layer.key().tensor.heads));
      set(path, "key_dim", hdf5_integer(layer.key().tensor.dim));
      set(path, "value_dim", hdf5_integer(layer.value().tensor.dim));
    }
    set(path, "rope", hdf5_text(layer.rope_json));
    set(path, "window", hdf5_integer(layer.window));
    for (const TensorCodebook& tensor : layer.tensors) {
      const std::string& name = tensor.tensor.name;
      const std::string group = path + "/" + name;
      encode_tensor(group, tensor);
      if (!has_kv_heads || (name != "key" && name != "value")) encode_description(group, tensor.tensor);
    }
  }

  void encode_description(const std::string& path, const CachedTensor& tensor) {
    set(path, "heads", hdf5_integer(tensor.heads));
    set(path, "dim", hdf5_integer(tensor.dim));
    set(path, "thresholds", hdf5_text(threshold_scope_name(tensor.thresholds)));
  }

  void encode_tensor(const std::string& path, const TensorCodebook& tensor) {
    tree_.groups.insert(path);
    set(path, "threshold_shift", hdf5_real(tensor.halves.threshold_shift));
    set(path, "datatype_excess", hdf5_real(tensor.halves.datatype_excess));
    if (tensor.rotation_block > 0) {
      set(path, "rotation", hdf5_text(kHadamard));
      set(path, "rotation_block", hdf5_integer(tensor.rotation_block));
    }
    tree_.values.emplace(path + "/fisher_channel", hdf5_floats(tensor.fisher_channel));
    encode_sets(path, tensor.outliers);
    if (!tensor.with_sinks.empty()) tree_.groups.insert(path + kWithSinks);
    encode_sets(path + kWithSinks, tensor.with_sinks);
    if (!tensor.rotated.empty()) tree_.groups.insert(path + kRotated);
    encode_sets(path + kRotated, tensor.rotated);
    if (!tensor.magnitudes) return;
    encode_magnitudes(path, tensor.magnitudes->cached);
    if (tensor.magnitudes->rotated) encode_magnitudes(path + kRotated, *tensor.magnitudes->rotated);
    if (tensor.magnitudes->envelope) encode_magnitudes(path + kEnvelope, *tensor.magnitudes->envelope);
  }

  void encode_magnitudes(const std::string& tensor, const Magnitudes& magnitudes) {
    const std::string path = tensor + kMagnitudes;
    tree_.groups.insert({tensor, path});
    const auto encode = [&](const char* name, const MagnitudeGroup& group) {
      tree_.values.emplace(concat(path, "/", name, "_quantiles"),
                           hdf5_matrix(group.quantiles, kMagnitudeLevels.size()));
      tree_.values.emplace(concat(path, "/", name, "_best"), hdf5_matrix(group.best, kScaledTypes));
    };
    encode("channel", magnitudes.channel);
    encode("head", magnitudes.head);
    encode("tensor", magnitudes.tensor);
  }

  void encode_sets(const std::string& path, const std::vector<OutlierSet>& sets) {
    for (const OutlierSet& set_of_fraction : sets) encode_outliers(path, set_of_fraction);
  }

  void encode_outliers(const std::string& parent, const OutlierSet& outliers) {
    const std::string path = parent + "/" + outlier_group_name(outliers.fraction);
    tree_.groups.insert(path);
    set(path, "fraction", hdf5_real(outliers.fraction));
    if (!outliers.lower.empty()) {
      tree_.values.emplace(path + "/lower", hdf5_floats(outliers.lower));
      tree_.values.emplace(path + "/upper", hdf5_floats(outliers.upper));
    }
    if (!outliers.histogram.empty())
      tree_.values.emplace(path + "/histogram", hdf5_floats(outliers.histogram));
    for (const Datatype& datatype : outliers.datatypes) {
      const std::string group = path + "/nuq" + std::to_string(datatype.bits);
      const std::string centroids = group + "/centroids";
      tree_.groups.insert(group);
      tree_.values.emplace(centroids, hdf5_floats(datatype.centroids));
      set(centroids, "qnorm_scale", hdf5_real(datatype.qnorm_scale));
      set(centroids, "qnorm_offset", hdf5_real(datatype.qnorm_offset));
      set(centroids, "objective", hdf5_real(datatype.objective));
      set(centroids, "lower_bound", hdf5_real(datatype.lower_bound));
      set(centroids, "weights", hdf5_text(datatype.weights));
      if (!datatype.has_ranges()) continue;
      tree_.values.emplace(group + "/scale", hdf5_floats(datatype.scale));
      tree_.values.emplace(group + "/zero", hdf5_floats(datatype.zero));
      if (!datatype.histogram.empty())
        tree_.values.emplace(group + "/histogram", hdf5_floats(datatype.histogram));
    }
  }

  Hdf5Tree tree_;
};

Codebook sorted(Codebook codebook) {
  std::ranges::sort(codebook.layers, {}, &LayerCodebook::index);
  for (LayerCodebook& layer : codebook.layers) {
    std::ranges::sort(layer.tensors, {},
                      [](const TensorCodebook& tensor) { return tensor_rank(tensor.tensor); });
    for (TensorCodebook& tensor : layer.tensors) {
      for (std::vector<OutlierSet>* sets : {&tensor.outliers, &tensor.with_sinks, &tensor.rotated}) {
        std::ranges::sort(*sets, {}, &OutlierSet::fraction);
        for (OutlierSet& set : *sets) std::ranges::sort(set.datatypes, {}, &Datatype::bits);
      }
    }
  }
  if (codebook.recipe) sort_recipe(codebook.recipe->tensors);
  return codebook;
}

}  // namespace

std::string texts_json(const std::vector<TextInfo>& texts) {
  nlohmann::json list = nlohmann::json::array();
  for (const TextInfo& text : texts) list.push_back({{"name", text.name}, {"sha256", text.sha256}});
  return list.dump();
}

Hdf5Tree codebook_tree(const Codebook& codebook) {
  return Encoder().encode(sorted(codebook));
}

void write_codebook(const std::filesystem::path& path, const Codebook& codebook) {
  if (codebook.schema_major != kCodebookSchemaMajor) {
    throw base::WrongUsage(base::concat(path.string(), ": schema ", codebook.schema_major,
                                        " cannot be written; expected ", kCodebookSchemaMajor));
  }
  const Codebook ordered = sorted(codebook);
  validate_codebook(ordered, path.string());
  write_hdf5_tree(path, Encoder().encode(ordered));
}

}  // namespace kvcal::formats
