// The half of validation_view.h that programs read.
#include <cmath>

#include "apps/validation_view.h"

namespace kvcal::apps {
namespace {

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

Json windows_json(const std::vector<calib::MethodScore>& windows) {
  Json divergences = Json::array(), perplexities = Json::array();
  for (const calib::MethodScore& window : windows) {
    divergences.push_back(number(window.divergence_mean));
    perplexities.push_back(number(window.perplexity));
  }
  return {{"kld_mean", std::move(divergences)}, {"ppl", std::move(perplexities)}};
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
          {"by_window", windows_json(decoding.windows)},
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
               {"by_window", windows_json(method.windows)},
               {"layers", std::move(layers)}};
  if (method.decoding) json["generate"] = decoding_json(*method.decoding);
  for (const calib::PasskeyReport& passkey : method.passkey) {
    json["passkey"].push_back(
        {{"length", passkey.length}, {"prompts", passkey.prompts}, {"retrieved", passkey.retrieved}});
  }
  return json;
}

}  // namespace

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
