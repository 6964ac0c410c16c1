#include "formats/export/overlay.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/new_file.h"
#include "formats/internal/kv_scales.h"
#include "formats/json.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;
using kv_scales::is_single;
using kv_scales::kConfig;
using kv_scales::kIndex;
using kv_scales::kModelOptConfig;
using kv_scales::kSingle;
using kv_scales::read_object;
using nlohmann::ordered_json;
namespace fs = std::filesystem;

void refuse_quantized(const fs::path& folder, const std::string& config) {
  std::string where;
  const ordered_json parsed = parse_ordered_json(config, (folder / kConfig).string());
  if (const ordered_json* found = kv_scales::quantization_of(parsed, where)) {
    throw InvalidInput(
        concat((folder / kConfig).string(), ": has a ", where, " already (quant_method ",
               kv_scales::method_of(*found),
               "), which an overlay would replace; --into merges the scales into such a model"));
  }
  std::error_code error;
  if (fs::exists(folder / kModelOptConfig, error)) {
    throw InvalidInput(
        concat((folder / kModelOptConfig).string(),
               ": the model is quantised by ModelOpt already; --into merges the scales into it"));
  }
}

}  // namespace

Overlay::Overlay(const ExportRequest& request)
    : request_(request), checkpoint_(request.model), config_(read_object(request.model / kConfig)) {
  refuse_quantized(request.model, config_);
}

std::vector<LayerScales> Overlay::scales() const {
  return kv_scales::layer_scales(request_.codebook, request_.scales, checkpoint_);
}

std::string Overlay::config_with(const std::string& quantization_config) const {
  ordered_json config = parse_ordered_json(config_, (request_.model / kConfig).string());
  config["quantization_config"] = ordered_json::parse(quantization_config);
  return config.dump(2) + "\n";
}

std::string Overlay::index_with(const std::vector<ScaleTensor>& scales) const {
  ordered_json metadata = ordered_json::object();
  if (!is_single(checkpoint_)) {
    const fs::path index = request_.model / kIndex;
    const ordered_json old = parse_ordered_json(read_object(index), index.string());
    if (const auto found = old.find("metadata"); found != old.end() && found->is_object()) metadata = *found;
  }
  return kv_scales::index_of(checkpoint_, kOverlaySingle, scales, std::move(metadata));
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
    if (ours || file == kOverlayShard || (is_single(checkpoint_) && file == kOverlaySingle)) {
      throw InvalidInput(
          concat((request_.model / file).string(), ": the overlay has another file of that name"));
    }
    const std::string_view name =
        is_single(checkpoint_) && file == kSingle ? kOverlaySingle : std::string_view(file);
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

  base::NewFolder folder(request_.out);
  add_model_files(folder, texts);
  std::vector<fs::path> written;
  for (const TextFile& text : texts) {
    base::write_file_atomically(folder.add(text.name), text.text);
    written.push_back(folder.path() / text.name);
  }
  kv_scales::write_shard(folder.add(kOverlayShard), content.scales);
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
    warnings.push_back(concat(windows, windows == 1 ? " layer has" : " layers have",
                              " a sliding window: scales hold for any window, but no loader was run with ",
                              "one; check the scales that it has"));
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
