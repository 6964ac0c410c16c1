// The JSON half of codebook_view.h.
#include <cmath>
#include <numeric>
#include <string>

#include "apps/base64.h"
#include "apps/codebook_view.h"

namespace kvcal::apps {
namespace {

// JSON knows no NaN and no infinity.
Json number_json(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

Json array_json(const std::vector<float>& values, Arrays arrays) {
  if (arrays == Arrays::kPacked) return {{"f4", base64_of(values)}};
  Json result = Json::array();
  for (const float value : values) result.push_back(number_json(value));
  return result;
}

// Text that is JSON already, as it is; null where it is not.
Json parsed(const std::string& text) {
  Json value = Json::parse(text, nullptr, false);
  return value.is_discarded() ? Json(nullptr) : value;
}

Json datatype_json(const formats::Datatype& datatype, Arrays arrays) {
  Json result = {{"bits", datatype.bits},
                 {"objective", number_json(datatype.objective)},
                 {"lower_bound", number_json(datatype.lower_bound)},
                 {"qnorm_scale", number_json(datatype.qnorm_scale)},
                 {"qnorm_offset", number_json(datatype.qnorm_offset)},
                 {"weights", datatype.weights},
                 {"ranges", datatype.has_ranges() ? "fitted" : "threshold"}};
  if (arrays == Arrays::kNone) return result;
  result["centroids"] = array_json(datatype.centroids, arrays);
  // A page draws histograms, not ranges.
  if (!datatype.histogram.empty()) result["histogram"] = array_json(datatype.histogram, arrays);
  if (datatype.has_ranges() && arrays != Arrays::kPacked) {
    result["scale"] = array_json(datatype.scale, arrays);
    result["zero"] = array_json(datatype.zero, arrays);
  }
  return result;
}

Json sets_json(const std::vector<formats::OutlierSet>& sets, Arrays arrays) {
  const bool wanted = arrays != Arrays::kNone;
  Json result = Json::array();
  for (const formats::OutlierSet& set : sets) {
    Json one = {{"fraction", set.fraction}};
    if (!set.datatypes.empty()) {
      Json datatypes = Json::array();
      for (const formats::Datatype& datatype : set.datatypes)
        datatypes.push_back(datatype_json(datatype, arrays));
      one["datatypes"] = std::move(datatypes);
    }
    if (wanted && !set.lower.empty()) {
      one["lower"] = array_json(set.lower, arrays);
      one["upper"] = array_json(set.upper, arrays);
    }
    if (wanted && !set.histogram.empty()) one["histogram"] = array_json(set.histogram, arrays);
    result.push_back(std::move(one));
  }
  return result;
}

// described: with the sizes that the layer does not give.
Json tensor_json(const formats::TensorCodebook& tensor, bool described, Arrays arrays) {
  const double fisher = std::accumulate(tensor.fisher_channel.begin(), tensor.fisher_channel.end(), 0.0);
  Json result = Json::object();
  if (described) {
    result["heads"] = tensor.tensor.heads;
    result["dim"] = tensor.tensor.dim;
    result["thresholds"] = std::string(formats::threshold_scope_name(tensor.tensor.thresholds));
  }
  result["fisher_sum"] = number_json(fisher);
  result["halves"] = {{"threshold_shift", number_json(tensor.halves.threshold_shift)},
                      {"datatype_excess", number_json(tensor.halves.datatype_excess)}};
  if (tensor.rotation_block > 0)
    result["rotation"] = {{"name", "hadamard"}, {"block", tensor.rotation_block}};
  result["outliers"] = sets_json(tensor.outliers, arrays);
  const Arrays of_ablation = arrays == Arrays::kPacked ? Arrays::kNone : arrays;
  if (!tensor.with_sinks.empty()) result["with_sinks"] = sets_json(tensor.with_sinks, of_ablation);
  if (!tensor.rotated.empty()) result["rope"] = sets_json(tensor.rotated, arrays);
  if (arrays != Arrays::kNone) result["fisher_channel"] = array_json(tensor.fisher_channel, arrays);
  return result;
}

// {"name", ..., "layers": [{"layer", "key", "value"}]}: a tensor's estimate under its name.
Json method_json(const calib::MethodEstimate& method) {
  Json layers = Json::array();
  for (const calib::TensorEstimate& tensor : method.tensors) {
    if (layers.empty() || layers.back()["layer"] != tensor.layer) layers.push_back({{"layer", tensor.layer}});
    layers.back()[tensor.tensor] = tensor.divergence ? number_json(*tensor.divergence) : Json(nullptr);
  }
  return {{"name", method.datatype.name()},
          {"bits", method.datatype.bits},
          {"fraction", method.datatype.fraction},
          {"bits_per_value", method.bits_per_value},
          {"cache_bytes", method.cache_bytes},
          {"context", calib::kSummaryContext},
          {"estimated_kld", method.divergence ? number_json(*method.divergence) : Json(nullptr)},
          {"layers", std::move(layers)}};
}

}  // namespace

Json provenance_json(const formats::Codebook& codebook) {
  const formats::ModelInfo& model = codebook.model;
  const formats::CalibrationInfo& calibration = codebook.calibration;
  Json texts = Json::array();
  for (const formats::TextInfo& text : calibration.texts) {
    texts.push_back({{"name", text.name}, {"sha256", text.sha256}});
  }
  return {{"schema", {codebook.schema_major, codebook.schema_minor}},
          {"created_by", codebook.created_by},
          {"content_sha256", codebook.content_sha256},
          {"model",
           {{"name", model.name},
            {"architecture", model.architecture},
            {"config_sha256", model.config_sha256},
            {"weights_sha256", model.weights_sha256},
            {"num_layers", model.num_layers},
            {"num_attention_heads", model.num_attention_heads},
            {"num_kv_heads", model.num_kv_heads},
            {"head_dim", model.head_dim},
            {"rope", parsed(model.rope_json)}}},
          {"calibration",
           {{"revision", calibration.revision},
            {"options", parsed(calibration.options_json)},
            {"texts", std::move(texts)},
            {"tokens_sha256", calibration.tokens_sha256},
            {"samples", calibration.samples},
            {"seqlen", calibration.seqlen},
            {"tokens", calibration.tokens},
            {"bos", calibration.bos},
            {"sinks", calibration.sinks},
            {"seed", calibration.seed},
            {"dtype", calibration.dtype},
            {"device", calibration.device},
            {"value_scope", calibration.value_scope},
            {"sensitivity", calibration.sensitivity},
            {"fisher_scale", calibration.fisher_scale},
            {"loss", number_json(calibration.loss)},
            {"perplexity", number_json(std::exp(calibration.loss))}}},
          {"recipe", codebook.recipe ? recipe_json(*codebook.recipe) : Json(nullptr)}};
}

Json recipe_json(const formats::Recipe& recipe) {
  Json curve = Json::array(), tensors = Json::array();
  for (std::size_t i = 0; i + 1 < recipe.curve.size(); i += 2)
    curve.push_back({{"bits_per_value", recipe.curve[i]}, {"kl", recipe.curve[i + 1]}});
  for (const formats::TensorRecipe& tensor : recipe.tensors) {
    tensors.push_back({{"layer", tensor.layer},
                       {"tensor", tensor.tensor},
                       {"bits", tensor.bits},
                       {"outliers", tensor.fraction},
                       {"kl", tensor.divergence}});
  }
  return {{"options", parsed(recipe.options_json)},
          {"source", recipe.source},
          {"context", recipe.context},
          {"bytes", recipe.bytes},
          {"bits_per_value", recipe.bits_per_value},
          {"kl", recipe.divergence},
          {"curve", std::move(curve)},
          {"tensors", std::move(tensors)}};
}

Json layer_json(const formats::LayerCodebook& layer, Arrays arrays) {
  Json result = Json::object();
  result["layer"] = layer.index;
  const bool has_kv_heads = layer.has_kv_heads();
  if (has_kv_heads) {
    result["kv_heads"] = layer.key().tensor.heads;
    result["key_dim"] = layer.key().tensor.dim;
    result["value_dim"] = layer.value().tensor.dim;
  }
  result["rope"] = parsed(layer.rope_json);
  result["window"] = layer.window;
  for (const formats::TensorCodebook& tensor : layer.tensors) {
    const std::string& name = tensor.tensor.name;
    result[name] = tensor_json(tensor, !has_kv_heads || (name != "key" && name != "value"), arrays);
  }
  return result;
}

Json summary_json(const calib::CodebookSummary& summary) {
  Json methods = Json::array();
  for (const calib::MethodEstimate& method : summary.methods) methods.push_back(method_json(method));
  std::string advice;
  for (const calib::SampleAdvice& part : summary.advice) advice += (advice.empty() ? "" : "; ") + part.reason;
  Json recipe;
  if (summary.recipe) {
    recipe = {{"bits_per_value", summary.recipe->bits_per_value},
              {"cache_bytes", summary.recipe->cache_bytes},
              {"kld", summary.recipe->divergence}};
  }
  return {{"methods", std::move(methods)},
          {"recipe", std::move(recipe)},
          {"sample",
           {{"threshold_shift", number_json(summary.sample.threshold_shift)},
            {"threshold_shift_limit", calib::kThresholdShiftLimit},
            {"datatype_excess", number_json(summary.sample.datatype_excess)},
            {"datatype_excess_limit", calib::kDatatypeExcessLimit},
            {"enough", summary.advice.empty()},
            {"advice", advice}}}};
}

Json plan_json(const calib::CalibrationPlan& plan) {
  const calib::ResourceNeed& need = plan.need;
  return {{"model_folder", plan.model_folder.string()},
          {"architecture", plan.model.architecture},
          {"layers", plan.model.num_layers},
          {"attention_heads", plan.model.num_attention_heads},
          {"kv_heads", plan.model.num_kv_heads},
          {"head_dim", plan.model.head_dim},
          {"parameters", plan.parameters},
          {"dtype", plan.calibration.dtype},
          {"samples", plan.calibration.samples},
          {"seqlen", plan.calibration.seqlen},
          {"tokens", plan.calibration.tokens},
          {"bos", plan.calibration.bos},
          {"memory_bytes", need.memory_bytes},
          {"memory_limit_bytes", need.memory_limit_bytes},
          {"memory",
           {{"stage", need.largest.stage},
            {"weights_bytes", need.largest.weights_bytes},
            {"working_bytes", need.largest.working_bytes},
            {"capture_bytes", need.largest.capture_bytes},
            {"fit_bytes", need.largest.fit_bytes},
            {"base_bytes", need.base_bytes}}},
          {"lanes", need.lanes},
          {"disk_bytes", need.disk_bytes},
          {"disk_free_bytes", need.disk_free_bytes},
          {"seconds_low", number_json(need.seconds_low)},
          {"seconds_high", number_json(need.seconds_high)},
          {"layers_done", plan.layers_fitted},
          {"forward_done", plan.left.forward_layers() == 0 && !plan.left.head},
          {"left", plan.left.text()},
          {"damaged", plan.damaged},
          {"work", plan.work.string()}};
}

}  // namespace kvcal::apps
