// formats/export/export_target.h: a form in which a codebook, or scales of the same calibration, are handed to
// another system.
//
// A target is one file in formats/export/targets/ and one line in targets.inc there (docs/exports/README.md says
// how to add one).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/codebook.h"
#include "formats/datatype_choice.h"

namespace kvcal::formats {

/// What shares a scale.
enum class ScaleScope { tensor, head, channel };

/// Where a scale's threshold lies among the magnitudes.
enum class Clip {
  max,       ///< the largest
  quantile,  ///< a level of kMagnitudeLevels
  best,      ///< the least weighted error
};

/// How symmetric scales are made.
struct ScaleChoice {
  ScaledType type = ScaledType::int8;
  ScaleScope scope = ScaleScope::channel;
  Clip clip = Clip::max;
  double level = 1;  ///< of Clip::quantile
  bool measured_keys =
      false;  ///< keys after RoPE as measured; else the envelope of the pairs that RoPE turns
};

/// Thresholds of one layer: [1], [kv_heads] or [kv_heads * dim], head by head.
struct LayerThresholds {
  int layer = 0;
  std::vector<float> key, value;
};

/// Of every layer, keys after RoPE. Throws InvalidInput naming layer and tensor where a threshold is 0 or the
/// codebook lacks what it takes: magnitudes (a file of a schema before 1.2), keys, values or RoPE.
[[nodiscard]] std::vector<LayerThresholds> scale_thresholds(const Codebook& codebook,
                                                            const ScaleChoice& choice);

/// The largest code of a type, by which a threshold is divided: 128, 8, 448.
[[nodiscard]] double largest_code(ScaledType type);

struct ExportRequest {
  const Codebook& codebook;
  std::filesystem::path out;               ///< file or folder to make; it does not exist yet
  std::optional<DatatypeChoice> datatype;  ///< given where the target exports datatypes, but for a recipe
  ScaleChoice scales;                      ///< read where it exports scales
  std::filesystem::path model;             ///< folder of the model; empty: not given
  bool copy = false;                       ///< an overlay copies the model's files instead of linking them
};

/// What was written, and what its user does next.
struct ExportReport {
  std::vector<std::filesystem::path> files;
  std::string serve;   ///< the command that serves it
  std::string needs;   ///< the least versions of what serves it
  std::string beware;  ///< the line in its log that must not appear, or how else a scale gets lost
  std::vector<std::string> warnings;
};

enum class ExportContent {
  codebook,   ///< all of it
  datatypes,  ///< those of one choice
  scales,     ///< symmetric scales
};

struct ExportTarget {
  std::string_view name;   ///< "onnx-genai"
  std::string_view about;  ///< one line
  ExportContent content = ExportContent::datatypes;
  bool needs_model = false;
  bool merges = false;        ///< formats/export/merge.h has it too
  bool takes_recipe = false;  ///< datatypes may be those of the codebook's recipe: no ExportRequest::datatype
  ScaleChoice usual = {};     ///< type and scope of its scales, where nobody says
  /// Writes the export, whole or not at all. Throws InvalidInput naming layer, tensor and reason where the target
  /// cannot express the codebook, WrongUsage for a choice that it does not have, SystemError (a full disk).
  ExportReport (*write)(const ExportRequest& request) = nullptr;
};

/// Throw InvalidInput where a layer's tensor is turned, or a datatype has ranges of its own, for which `target` ("KVQuant's
/// pickle") has no place: what reads it would take them for others.
void refuse_rotation(const LayerCodebook& layer, std::string_view target);
void refuse_ranges(int layer, const TensorCodebook& tensor, const Datatype& datatype,
                   std::string_view target);

/// All known, in the order of targets.inc.
[[nodiscard]] const std::vector<ExportTarget>& export_targets();

}  // namespace kvcal::formats
