#include "formats/export/overlay.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <span>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/new_file.h"
#include "formats/internal/json.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;
using nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr std::string_view kConfig = "config.json";
constexpr std::string_view kIndex = "model.safetensors.index.json";
constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kModelOptConfig = "hf_quant_config.json";
constexpr std::size_t kMaxJsonBytes = 100'000'000;

/// The text of a JSON object.
std::string read_object(const fs::path& path) {
  const std::vector<std::byte> bytes = base::read_file(path, kMaxJsonBytes);
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!parse_json(text, path.string()).is_object())
    throw InvalidInput(concat(path.string(), ": not a JSON object"));
  return text;
}

/// The quantisation that a config names, and under which key. Null: none.
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

void refuse_quantized(const fs::path& folder, const std::string& config) {
  std::string where;
  const ordered_json parsed = ordered_json::parse(config);
  if (const ordered_json* found = quantization_of(parsed, where)) {
    const auto method = found->is_object() ? found->find("quant_method") : found->end();
    const bool named = found->is_object() && method != found->end() && method->is_string();
    throw InvalidInput(
        concat((folder / kConfig).string(), ": has a ", where, " already (quant_method ",
               named ? method->get<std::string>() : "not named",
               "), which an overlay would replace; --into will merge the scales into such a model"));
  }
  std::error_code error;
  if (fs::exists(folder / kModelOptConfig, error)) {
    throw InvalidInput(
        concat((folder / kModelOptConfig).string(),
               ": the model is quantised by ModelOpt already; --into will merge the scales into it"));
  }
}

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

}  // namespace

Overlay::Overlay(const ExportRequest& request)
    : request_(request), checkpoint_(request.model), config_(read_object(request.model / kConfig)) {
  refuse_quantized(request.model, config_);
}

bool Overlay::is_single() const {
  const std::span<const SafetensorsFile> files = checkpoint_.files();
  return files.size() == 1 && files.front().path().filename() == kSingle;
}

std::string Overlay::attention_of(int layer) const {
  // Scales are named as the attention module is: a model of text alone, or the text part of a larger one.
  for (const std::string_view model : {"model.", "model.language_model."}) {
    std::string prefix = concat(model, "layers.", layer, ".self_attn.");
    const auto found = std::ranges::lower_bound(checkpoint_.tensors(), prefix, {}, &TensorView::name);
    if (found != checkpoint_.tensors().end() && found->name.starts_with(prefix)) return prefix;
  }
  return {};
}

void Overlay::check_layers() const {
  const Codebook& codebook = request_.codebook;
  const int count = codebook.model.num_layers;
  std::string missing;
  for (int layer = 0; layer < count; ++layer) {
    if (std::ranges::find(codebook.layers, layer, &LayerCodebook::index) == codebook.layers.end())
      missing += concat(missing.empty() ? "" : ", ", layer);
    if (attention_of(layer).empty()) {
      throw InvalidInput(concat(request_.model.string(), ": no tensor's name begins with model.layers.",
                                layer,
                                ".self_attn., so what the layer's scales must be called is not known"));
    }
  }
  if (!attention_of(count).empty()) {
    throw InvalidInput(concat(request_.model.string(), ": has more layers than the ", count,
                              " of the codebook; calibrate this model"));
  }
  if (missing.empty()) return;
  throw InvalidInput(
      concat("the codebook lacks layers ", missing, " of ", count,
             "; a layer without scales runs with 1.0, or with uninitialised ones; calibrate all layers"));
}

std::vector<LayerScales> Overlay::scales() const {
  check_layers();
  std::vector<LayerScales> layers;
  for (const LayerThresholds& thresholds : scale_thresholds(request_.codebook, request_.scales)) {
    const int layer = thresholds.layer;
    layers.push_back({attention_of(layer), layer, scales_of(thresholds.key, layer, "key"),
                      scales_of(thresholds.value, layer, "value")});
  }
  std::ranges::sort(layers, {}, &LayerScales::layer);
  return layers;
}

std::string Overlay::config_with(const std::string& quantization_config) const {
  ordered_json config = ordered_json::parse(config_);
  config["quantization_config"] = ordered_json::parse(quantization_config);
  return config.dump(2) + "\n";
}

std::string Overlay::index_with(const std::vector<ScaleTensor>& scales) const {
  ordered_json index = {{"metadata", ordered_json::object()}, {"weight_map", ordered_json::object()}};
  if (!is_single()) {
    const ordered_json old = ordered_json::parse(read_object(request_.model / kIndex));
    if (const auto metadata = old.find("metadata"); metadata != old.end() && metadata->is_object())
      index["metadata"] = *metadata;
  }
  std::uint64_t bytes = 0;
  std::vector<std::pair<std::string, std::string>> files;  // of each tensor
  for (const TensorView& tensor : checkpoint_.tensors()) {
    bytes += tensor.data.size();
    files.emplace_back(tensor.name,
                       is_single() ? std::string(kOverlaySingle) : tensor.file.filename().string());
  }
  for (const ScaleTensor& scale : scales) {
    if (checkpoint_.find(scale.name) != nullptr)
      throw InvalidInput(concat(request_.model.string(), ": has a tensor '", scale.name, "' already"));
    bytes += scale.values.size() * sizeof(float);
    files.emplace_back(scale.name, kOverlayShard);
  }
  std::ranges::sort(files);
  index["metadata"]["total_size"] = bytes;
  // Added without a search for the name: an ordered object searches from the start.
  auto& map = index["weight_map"].get_ref<ordered_json::object_t&>();
  for (const auto& [tensor, file] : files) map.emplace_back(tensor, file);
  return index.dump(2) + "\n";
}

std::vector<std::string> Overlay::file_names() const {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(request_.model, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code dangling;
    if (name.starts_with('.') || it->is_directory(dangling)) continue;
    if (!it->is_regular_file(dangling))
      throw InvalidInput(
          concat(it->path().string(), ": neither a file nor a link to one; download it again"));
    names.push_back(name);
  }
  if (error) base::throw_system_error("read the folder", request_.model, error.value());
  std::ranges::sort(names);
  return names;
}

void Overlay::add_model_files(base::NewFolder& folder, const std::vector<TextFile>& replaced) const {
  const fs::path model = fs::canonical(request_.model);
  for (const std::string& file : file_names()) {
    const bool ours = std::ranges::find(replaced, file, &TextFile::name) != replaced.end();
    if (ours && (file == kConfig || file == kIndex)) continue;
    if (ours || file == kOverlayShard || (is_single() && file == kOverlaySingle)) {
      throw InvalidInput(
          concat((request_.model / file).string(), ": the overlay has another file of that name"));
    }
    const std::string_view name = is_single() && file == kSingle ? kOverlaySingle : std::string_view(file);
    if (request_.copy) {
      folder.add_copy(name, model / file);
    } else {
      folder.add_link(name, model / file);
    }
  }
}

std::vector<fs::path> Overlay::write(const OverlayContent& content) const {
  std::vector<TextFile> texts = content.files;
  if (!content.quantization_config.empty())
    texts.push_back({std::string(kConfig), config_with(content.quantization_config)});
  texts.push_back({std::string(kIndex), index_with(content.scales)});
  std::vector<TensorView> tensors;
  for (const ScaleTensor& scale : content.scales)
    tensors.push_back({scale.name, Dtype::F32, scale.shape, std::as_bytes(std::span(scale.values)), {}});

  base::NewFolder folder(request_.out);
  add_model_files(folder, texts);
  std::vector<fs::path> written;
  for (const TextFile& text : texts) {
    base::write_file_atomically(folder.add(text.name), text.text);
    written.push_back(folder.path() / text.name);
  }
  // Some loaders refuse a file whose metadata does not say for which framework it is.
  write_safetensors(folder.add(kOverlayShard), tensors, {{"format", "pt"}});
  written.push_back(folder.path() / kOverlayShard);
  folder.publish();
  return written;
}

void check_fp8_choice(const ScaleChoice& choice, std::string_view target, bool heads) {
  if (choice.type != ScaledType::fp8)
    throw base::WrongUsage(concat(target, " has scales of fp8 (E4M3) only: use --type fp8"));
  if (choice.scope == ScaleScope::tensor || (heads && choice.scope == ScaleScope::head)) return;
  throw base::WrongUsage(concat(target, " has one scale a tensor", heads ? " or a head" : "",
                                ": use --per tensor", heads ? " or --per head" : ""));
}

std::vector<std::string> scale_warnings(const Codebook& codebook, const std::vector<LayerScales>& scales) {
  std::vector<std::string> warnings;
  for (const LayerScales& layer : scales) {
    for (const auto& [name, values] : {std::pair("key", &layer.key), std::pair("value", &layer.value)}) {
      if (std::ranges::find(*values, 1.0F) == values->end()) continue;
      warnings.push_back(concat("layer ", layer.layer, ", ", name,
                                "s: a scale is exactly 1.0, which cannot be told from a loader's default"));
    }
  }
  const auto windows =
      std::ranges::count_if(codebook.layers, [](const LayerCodebook& l) { return l.window > 0; });
  if (windows > 0) {
    warnings.push_back(concat(windows,
                              " layers have a sliding window: their scales hold for any window, but no ",
                              "loader was run with one; check the scales that it has"));
  }
  const auto widths = [](const LayerCodebook& l) {
    return std::pair(l.key().tensor.dim, l.value().tensor.dim);
  };
  if (std::ranges::adjacent_find(codebook.layers, std::ranges::not_equal_to{}, widths) !=
      codebook.layers.end())
    warnings.emplace_back(
        "layers differ in head_dim: transformers 5 refuses such a model with a kv_cache_scheme");
  return warnings;
}

}  // namespace kvcal::formats
