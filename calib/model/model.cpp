#include "calib/model/model.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "formats/json.h"

namespace kvcal::calib {

#define KVCAL_ARCHITECTURE(family) Architecture family();
#include "calib/model/families/architectures.inc"
#undef KVCAL_ARCHITECTURE

namespace {

std::string known_names() {
  std::string names;
  for (const Architecture& architecture : architectures())
    names += (names.empty() ? "" : ", ") + architecture.name;
  return names;
}

const Architecture& find_architecture(const ConfigReader& config) {
  std::string asked;
  if (config.has("architectures") && config.object()["architectures"].is_array()) {
    for (const auto& name : config.object()["architectures"]) {
      if (!name.is_string()) config.fail("architectures", "expected a list of names");
      for (const Architecture& known : architectures()) {
        if (known.name == name.get<std::string>()) return known;
      }
      asked += (asked.empty() ? "" : ", ") + name.get<std::string>();
    }
  }
  const std::string model_type = config.text("model_type", "");
  if (asked.empty()) {
    for (const Architecture& known : architectures()) {
      if (known.model_type == model_type) return known;
    }
    asked = "model_type '" + model_type + "'";
  }
  throw base::InvalidInput(base::concat(config.file().string(), ": the architecture ", asked,
                                        " is not known; those known are: ", known_names(),
                                        ". docs/architectures.md says how to add one"));
}

bool is_quantised(const ConfigReader& config) {
  return !config.is_null("quantization_config") || !config.is_null("compression_config");
}

void refuse_quantised(const ConfigReader& config) {
  if (!is_quantised(config)) return;
  const std::string key =
      config.is_null("quantization_config") ? "compression_config" : "quantization_config";
  const auto& quantised = config.object().at(key);
  std::string method = "unknown";
  if (quantised.is_object() && quantised.contains("quant_method") && quantised["quant_method"].is_string()) {
    method = quantised["quant_method"].get<std::string>();
  }
  throw base::InvalidInput(base::concat(
      config.file().string(), ": the weights are quantised (", key, ", method '", method,
      "'); calibrate the original F16 or BF16 checkpoint, whose codebook serves the quantised one too, or "
      "convert this one: "
      "AutoModelForCausalLM.from_pretrained(DIR).dequantize() and save_pretrained() of transformers"));
}

}  // namespace

const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> known = {
#define KVCAL_ARCHITECTURE(family) family(),
#include "calib/model/families/architectures.inc"
#undef KVCAL_ARCHITECTURE
  };
  return known;
}

ModelDefinition read_model_definition(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "config.json";
  if (!std::filesystem::exists(file)) {
    throw base::InvalidInput(
        base::concat(folder.string(), ": no config.json; --model takes a folder of the Hugging Face form"));
  }
  const nlohmann::json json = formats::read_json_file(file);
  const ConfigReader config(json, file);
  const Architecture& architecture = find_architecture(config);
  refuse_quantised(config);
  return architecture.read(config);
}

ModelLayout read_model_layout(const std::filesystem::path& config_file) {
  const nlohmann::json json = formats::read_json_file(config_file);
  const ConfigReader config(json, config_file);
  return {find_architecture(config).read(config), is_quantised(config)};
}

std::unique_ptr<Model> load_model(const ModelDefinition& definition,
                                  std::shared_ptr<const WeightLoader> weights) {
  auto model = definition.make(weights);
  const auto check = [&](const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs) weights->check(spec);
  };
  check(model->embedding_weights());
  for (int layer = 0; layer < definition.config.num_layers(); ++layer) check(model->block_weights(layer));
  check(model->head_weights());
  return model;
}

}  // namespace kvcal::calib
