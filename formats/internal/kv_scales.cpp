#include "formats/internal/kv_scales.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "formats/internal/json.h"
#include "formats/json.h"

namespace kvcal::formats::kv_scales {
namespace {

using base::concat;
using base::InvalidInput;
using nlohmann::ordered_json;
namespace fs = std::filesystem;

float scale_of(float threshold, int layer, std::string_view tensor) {
  const auto scale = static_cast<float>(double{threshold} / largest_code(ScaledType::fp8));
  if (std::isfinite(scale) && scale > 0) return scale;
  throw InvalidInput(
      concat("layer ", layer, ", ", tensor, "s: no float32 scale expresses the threshold ", threshold));
}

std::vector<float> scales_of(const std::vector<float>& thresholds, int layer, std::string_view tensor) {
  std::vector<float> scales;
  scales.reserve(thresholds.size());
  for (const float threshold : thresholds) scales.push_back(scale_of(threshold, layer, tensor));
  return scales;
}

/// Empty where the model has none that this knows.
std::string attention_of(const Checkpoint& checkpoint, int layer) {
  // Scales are named as the attention module is: a model of text alone, or the text part of a larger one.
  for (const std::string_view model : {"model.", "model.language_model."}) {
    std::string prefix = concat(model, "layers.", layer, ".self_attn.");
    const auto found = std::ranges::lower_bound(checkpoint.tensors(), prefix, {}, &TensorView::name);
    if (found != checkpoint.tensors().end() && found->name.starts_with(prefix)) return prefix;
  }
  return {};
}

void check_layers(const Codebook& codebook, const Checkpoint& checkpoint) {
  const int count = codebook.model.num_layers;
  std::string missing;
  for (int layer = 0; layer < count; ++layer) {
    if (std::ranges::find(codebook.layers, layer, &LayerCodebook::index) == codebook.layers.end())
      missing += concat(missing.empty() ? "" : ", ", layer);
    if (attention_of(checkpoint, layer).empty()) {
      throw InvalidInput(concat(checkpoint.folder().string(), ": no tensor's name begins with model.layers.",
                                layer,
                                ".self_attn., so what the layer's scales must be called is not known"));
    }
  }
  if (!attention_of(checkpoint, count).empty()) {
    throw InvalidInput(concat(checkpoint.folder().string(), ": has more layers than the ", count,
                              " of the codebook; calibrate this model"));
  }
  if (missing.empty()) return;
  throw InvalidInput(
      concat("the codebook lacks layers ", missing, " of ", count,
             "; a layer without scales runs with 1.0, or with uninitialised ones; calibrate all layers"));
}

}  // namespace

std::string read_object(const fs::path& path) {
  const std::vector<std::byte> bytes = base::read_file(path, kMaxJsonBytes);
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!parse_json(text, path.string()).is_object())
    throw InvalidInput(concat(path.string(), ": not a JSON object"));
  return text;
}

const ordered_json* quantization_of(const ordered_json& config, std::string& where) {
  const auto find = [&](const ordered_json& object, const std::string& prefix) -> const ordered_json* {
    for (const char* key : {"quantization_config", "compression_config"}) {
      const auto found = object.find(key);
      if (found == object.end() || found->is_null()) continue;
      where = prefix + key;
      return &*found;
    }
    return nullptr;
  };
  if (const ordered_json* found = find(config, "")) return found;
  const auto text = config.find("text_config");
  return text != config.end() && text->is_object() ? find(*text, "text_config.") : nullptr;
}

std::string method_of(const ordered_json& quantization) {
  if (!quantization.is_object()) return "not named";
  const auto method = quantization.find("quant_method");
  return method != quantization.end() && method->is_string() ? method->get<std::string>() : "not named";
}

bool is_single(const Checkpoint& checkpoint) {
  const std::span<const SafetensorsFile> files = checkpoint.files();
  return files.size() == 1 && files.front().path().filename() == kSingle;
}

std::vector<LayerScales> layer_scales(const Codebook& codebook, const ScaleChoice& choice,
                                      const Checkpoint& checkpoint) {
  check_layers(codebook, checkpoint);
  std::vector<LayerScales> layers;
  for (const LayerThresholds& thresholds : scale_thresholds(codebook, choice)) {
    const int layer = thresholds.layer;
    layers.push_back({attention_of(checkpoint, layer), layer, scales_of(thresholds.key, layer, "key"),
                      scales_of(thresholds.value, layer, "value")});
  }
  std::ranges::sort(layers, {}, &LayerScales::layer);
  return layers;
}

std::vector<ScaleTensor> compressed_tensors_names(const std::vector<LayerScales>& layers, bool heads) {
  std::vector<ScaleTensor> tensors;
  const auto add = [&](std::string name, const std::vector<float>& values) {
    std::vector<std::int64_t> shape = {1};
    if (heads) shape = {static_cast<std::int64_t>(values.size()), 1, 1};
    tensors.push_back({std::move(name), std::move(shape), values});
  };
  for (const LayerScales& layer : layers) {
    add(layer.attention + "k_scale", layer.key);
    add(layer.attention + "v_scale", layer.value);
  }
  return tensors;
}

std::vector<ScaleTensor> modelopt_names(const std::vector<LayerScales>& layers) {
  std::vector<ScaleTensor> tensors;
  for (const LayerScales& layer : layers) {
    tensors.push_back({layer.attention + "k_proj.k_scale", {}, layer.key});
    tensors.push_back({layer.attention + "v_proj.v_scale", {}, layer.value});
  }
  return tensors;
}

std::string index_of(const Checkpoint& checkpoint, std::string_view single,
                     const std::vector<ScaleTensor>& scales, ordered_json metadata) {
  std::uint64_t bytes = 0;
  std::vector<std::pair<std::string, std::string>> files;  // of each tensor
  const bool alone = is_single(checkpoint);
  for (const TensorView& tensor : checkpoint.tensors()) {
    bytes += tensor.data.size();
    files.emplace_back(tensor.name, alone ? std::string(single) : tensor.file.filename().string());
  }
  for (const ScaleTensor& scale : scales) {
    if (checkpoint.find(scale.name) != nullptr)
      throw InvalidInput(concat(checkpoint.folder().string(), ": has a tensor '", scale.name, "' already"));
    bytes += scale.values.size() * sizeof(float);
    files.emplace_back(scale.name, kOverlayShard);
  }
  std::ranges::sort(files);
  metadata["total_size"] = bytes;
  ordered_json index = {{"metadata", std::move(metadata)}, {"weight_map", ordered_json::object()}};
  // Added without a search for the name: an ordered object searches from the start.
  auto& map = index["weight_map"].get_ref<ordered_json::object_t&>();
  for (const auto& [tensor, file] : files) map.emplace_back(tensor, file);
  return index.dump(2) + "\n";
}

void write_shard(const fs::path& path, const std::vector<ScaleTensor>& scales) {
  std::vector<TensorView> tensors;
  for (const ScaleTensor& scale : scales)
    tensors.push_back({scale.name, Dtype::F32, scale.shape, std::as_bytes(std::span(scale.values)), {}});
  // Some loaders refuse a file whose metadata does not say for which framework it is.
  write_safetensors(path, tensors, {{"format", "pt"}});
}

}  // namespace kvcal::formats::kv_scales
