// formats/export/check.h: an export of scales, read back as a loader would see it: whether each scale of each layer
// is there, can be used, and belongs to the model.
//
// Loaders are silent about most of what is looked for here: vLLM runs with 1.0 where a scale is missing,
// transformers with uninitialised memory (docs/exports/README.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "formats/codebook.h"

namespace kvcal::formats {

/// What is wrong with one scale, or with a file that all scales depend on.
struct ScaleFinding {
  std::string name;     ///< a tensor, "layer 3, keys", or a file of the folder: "config.json"
  std::string problem;  ///< one line, as the name: control characters as \u000a
};

struct ExportCheck {
  /// "onnx-genai"; of a folder its quantisation method ("compressed-tensors", "modelopt", "fp8", ...), "none" where
  /// it has scales but no configuration.
  std::string format;
  std::int64_t scales = 0;             ///< numbers that were looked at, over all layers, heads and channels
  std::optional<double> smallest;      ///< of those that are finite; empty: none is
  std::optional<double> largest;       ///< likewise
  std::vector<ScaleFinding> problems;  ///< empty: a loader sees every scale, and each can be used
};

/// `path`: a model's folder with FP8 scales of its cache (an overlay of compressed-tensors or modelopt, or a
/// checkpoint into which such scales were merged), or a scale file of onnx-genai (JSON).
/// Of a folder: its configuration of the cache, and for keys and values of every layer that its index shows: missing,
/// 1.0, not finite, not above 0, subnormal, of the wrong shape or dtype, of a layer that the model does not have.
/// Of a JSON file: layers, lengths, qmax and the values.
/// With a codebook (else null) also whether it has as many layers and heads, and whether each scale's threshold lies
/// between the 0.9 quantile and the maximum of its magnitudes.
/// Throws InvalidInput naming the file and what to do: neither of the two (told by its first bytes, with what it is), damaged JSON or safetensors, a config.json
/// without the number of layers, a folder without any scales, a codebook without magnitudes (a schema before 1.2).
[[nodiscard]] ExportCheck check_export(const std::filesystem::path& path, const Codebook* codebook);

}  // namespace kvcal::formats
