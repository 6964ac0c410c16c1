// formats/export/overlay.h: a folder beside a model's own that adds scales of its cache to it, for loaders that read
// Hugging Face folders.
//
// It has every file of the model's folder (linked, or copied), except folders and hidden files; the scales in a shard
// of their own, kOverlayShard; and a model.safetensors.index.json that lists the tensors of all shards, since loaders
// pass over a shard that the index does not name. A model in one model.safetensors has it under kOverlaySingle there:
// where a file of that name lies, transformers reads it and no index.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/new_folder.h"
#include "formats/checkpoint.h"
#include "formats/export/export_target.h"

namespace kvcal::formats {

inline constexpr std::string_view kOverlayShard = "kvcal-kv-scales.safetensors";
inline constexpr std::string_view kOverlaySingle = "model-00001-of-00001.safetensors";

/// FP8 (E4M3) scales of one layer: threshold / 448, one a tensor or one a head.
struct LayerScales {
  std::string attention;  ///< where its tensors' names begin: "model.layers.7.self_attn."
  int layer = 0;
  std::vector<float> key, value;
};

/// A tensor of float32.
struct ScaleTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

struct TextFile {
  std::string name, text;
};

/// What an overlay adds to the model.
struct OverlayContent {
  std::vector<ScaleTensor> scales;
  std::string quantization_config;  ///< JSON, for config.json; empty: that stays as it is
  std::vector<TextFile> files;      ///< further ones
};

class Overlay {
 public:
  /// Reads the model's folder; `request` must outlive this. Throws InvalidInput: no folder, no safetensors, no
  /// config.json or one that is not an object, a model that is quantised already (naming how).
  explicit Overlay(const ExportRequest& request);

  /// Of all layers of the model, in order. Throws InvalidInput: a layer that the codebook lacks, a layer whose
  /// attention has no tensors under a known name in the model, a model of more layers, a scale that
  /// float32 cannot hold, and what scale_thresholds() throws.
  [[nodiscard]] std::vector<LayerScales> scales() const;

  /// Makes the folder request.out, whole or not at all. The files that are not the model's own. Throws InvalidInput
  /// for a tensor or file that the model has under the same name, SystemError (the folder exists, a full disk).
  [[nodiscard]] std::vector<std::filesystem::path> write(const OverlayContent& content) const;

 private:
  [[nodiscard]] std::string config_with(const std::string& quantization_config) const;
  [[nodiscard]] std::string index_with(const std::vector<ScaleTensor>& scales) const;
  /// Links or copies all but those that `replaced` or the overlay itself has another of.
  void add_model_files(base::NewFolder& folder, const std::vector<TextFile>& replaced) const;
  /// Of the model's folder, by name.
  [[nodiscard]] std::vector<std::string> file_names() const;

  const ExportRequest& request_;
  Checkpoint checkpoint_;
  std::string config_;  ///< config.json, an object
};

/// Throws WrongUsage naming the target where the choice is not FP8 or the scope not a tensor (or a head, with
/// `heads`).
void check_fp8_choice(const ScaleChoice& choice, std::string_view target, bool heads);

/// What every target of FP8 scales warns about: scales of exactly 1, which a loader's default is too, and sliding
/// windows.
[[nodiscard]] std::vector<std::string> scale_warnings(const Codebook& codebook,
                                                      const std::vector<LayerScales>& scales);

}  // namespace kvcal::formats
