// formats/internal/kv_scales.h: what an overlay and a merge (formats/export/overlay.h, merge.h) share: the files of
// a Hugging Face folder, the scales of its layers, and the tensors that hold them.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/export/export_target.h"
#include "formats/export/overlay.h"

namespace kvcal::formats::kv_scales {

/// The longest JSON file of a model's folder that is read.
inline constexpr std::size_t kMaxJsonBytes = 100'000'000;
inline constexpr const char* kConfig = "config.json";
inline constexpr const char* kIndex = "model.safetensors.index.json";
inline constexpr const char* kSingle = "model.safetensors";
inline constexpr std::string_view kModelOptConfig = "hf_quant_config.json";

/// The text of a JSON object. Throws InvalidInput naming the file.
[[nodiscard]] std::string read_object(const std::filesystem::path& path);

/// The quantisation that a config names, and under which key ("text_config.quantization_config"). Null: none.
[[nodiscard]] const nlohmann::ordered_json* quantization_of(const nlohmann::ordered_json& config,
                                                            std::string& where);

/// Its quant_method; "not named" where there is none.
[[nodiscard]] std::string method_of(const nlohmann::ordered_json& quantization);

/// Whether all weights lie in one model.safetensors.
[[nodiscard]] bool is_single(const Checkpoint& checkpoint);

/// Of all layers of the model, in order. Throws as Overlay::scales().
[[nodiscard]] std::vector<LayerScales> layer_scales(const Codebook& codebook, const ScaleChoice& choice,
                                                    const Checkpoint& checkpoint);

/// self_attn.k_scale and v_scale, [1] or (heads) [kv_heads, 1, 1].
[[nodiscard]] std::vector<ScaleTensor> compressed_tensors_names(const std::vector<LayerScales>& layers,
                                                                bool heads);
/// self_attn.k_proj.k_scale and v_proj.v_scale, without extents.
[[nodiscard]] std::vector<ScaleTensor> modelopt_names(const std::vector<LayerScales>& layers);

/// The kv_cache_scheme of compressed-tensors as JSON.
[[nodiscard]] std::string compressed_tensors_scheme(bool heads);

/// How the folder is served, and where scales get lost: all but the files.
[[nodiscard]] ExportReport compressed_tensors_report(const Codebook& codebook,
                                                     const std::vector<LayerScales>& scales, bool heads,
                                                     const std::filesystem::path& folder);

/// An index of the checkpoint's tensors and the scales, in order of their names, with this metadata and the size
/// of them all. `single` is the file of a checkpoint that is_single(). Throws InvalidInput for a name that is there.
[[nodiscard]] std::string index_of(const Checkpoint& checkpoint, std::string_view single,
                                   const std::vector<ScaleTensor>& scales, nlohmann::ordered_json metadata);

/// Whole or not at all.
void write_shard(const std::filesystem::path& path, const std::vector<ScaleTensor>& scales);

}  // namespace kvcal::formats::kv_scales
