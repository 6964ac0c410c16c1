#include "calib/export_flat.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/new_file.h"
#include "calib/validate/methods/codec_storage.h"
#include "cuda/flat_codebook.h"
#include "cuda/kernels/launch.h"
#include "cuda/kernels/record_format.h"
#include "formats/export/export_target.h"

namespace kvcal::calib {
namespace {

using base::concat;
using base::InvalidInput;

/// The datatypes that a layer's tensors are stored by.
class Choices {
 public:
  explicit Choices(const formats::ExportRequest& request) : request_(request) {}

  [[nodiscard]] formats::DatatypeChoice of(const formats::LayerCodebook& layer, const char* tensor) const {
    if (request_.datatype) return *request_.datatype;
    const formats::TensorRecipe& recipe = *request_.codebook.recipe->find(layer.index, tensor);
    return {recipe.bits, recipe.fraction, false};
  }
  /// Whether the recipe leaves one of them as it is.
  [[nodiscard]] bool keeps(const formats::LayerCodebook& layer) const {
    return std::ranges::any_of(layer.tensors, [&](const formats::TensorCodebook& tensor) {
      return of(layer, tensor.tensor.name.c_str()).bits == formats::kKeptBits;
    });
  }

 private:
  const formats::ExportRequest& request_;
};

codec::FlatLayer flat_layer(const formats::LayerCodebook& layer, const Choices& choices) {
  if (!layer.has_kv_heads()) {
    throw InvalidInput(concat("layer ", layer.index,
                              " caches other tensors than keys and values of the same heads, ",
                              "for which the kernels have no place"));
  }
  const formats::DatatypeChoice key_choice = choices.of(layer, "key"),
                                value_choice = choices.of(layer, "value");
  const formats::ChosenDatatype key = formats::require_datatype(layer.index, layer.key(), key_choice);
  const formats::ChosenDatatype value = formats::require_datatype(layer.index, layer.value(), value_choice);
  codec::FlatLayer flat;
  flat.index = static_cast<std::uint32_t>(layer.index);
  flat.kv_heads = static_cast<std::uint32_t>(layer.key().tensor.heads);
  flat.key_dim = static_cast<std::uint32_t>(layer.key().tensor.dim);
  flat.value_dim = static_cast<std::uint32_t>(layer.value().tensor.dim);
  flat.window = layer.window;
  flat.key_lower = key.outliers->lower;
  flat.key_upper = key.outliers->upper;
  flat.key_scale = key.datatype->scale;
  flat.key_zero = key.datatype->zero;
  flat.key = codec_datatype(*key.datatype, key_choice.qnorm);
  flat.value = codec_datatype(*value.datatype, value_choice.qnorm);
  flat.key_outliers = key_choice.fraction;
  flat.value_outliers = value_choice.fraction;
  flat.value_rotation_block = static_cast<std::uint32_t>(layer.value().rotation_block);
  return flat;
}

// Of what kvcal's own kernels do otherwise than the calibration, or refuse; another's may take it.
std::vector<std::string> kernel_warnings(const codec::FlatCodebook& flat) {
  std::vector<std::string> warnings;
  const bool several =
      std::ranges::any_of(flat.layers, [](const codec::FlatLayer& l) { return l.kv_heads > 1; });
  if (several && !flat.value_per_head) {
    warnings.emplace_back(
        "values were fitted with thresholds over all heads; kvcal's kernels find them in each: "
        "calibrate with --value-scope head");
  }
  const std::string sizes = concat("kvcal's kernels take head dimensions 64, 128 and 256 and up to ",
                                   KVCAL_TILE_TOKENS, " sinks; ");
  for (const codec::FlatLayer& layer : flat.layers) {
    const auto lacks = [](std::uint32_t dim) { return !codec::has_kernel(2, dim); };  // with any bits
    if (!lacks(layer.key_dim) && !lacks(layer.value_dim)) continue;
    warnings.push_back(concat(sizes, "layer ", layer.index, " has ",
                              lacks(layer.key_dim) ? layer.key_dim : layer.value_dim));
    break;  // most models have one size for all layers
  }
  if (flat.sinks > KVCAL_TILE_TOKENS)
    warnings.push_back(concat(sizes, "this codebook has ", flat.sinks, " sinks"));
  return warnings;
}

formats::ExportReport write(const formats::ExportRequest& request) {
  const formats::Codebook& codebook = request.codebook;
  codec::FlatCodebook flat;
  flat.sinks = static_cast<std::uint32_t>(codebook.calibration.sinks);
  flat.value_per_head = codebook.calibration.value_scope == "head";
  flat.content_sha256 = codebook.content_sha256;
  flat.config_sha256 = codebook.model.config_sha256;
  flat.weights_sha256 = codebook.model.weights_sha256;
  const Choices choices(request);
  std::string kept;
  for (const formats::LayerCodebook& layer : codebook.layers) {
    if (choices.keeps(layer))
      kept += concat(kept.empty() ? "" : ", ", layer.index);
    else
      flat.layers.push_back(flat_layer(layer, choices));
  }
  if (flat.layers.empty())
    throw InvalidInput("the recipe keeps every layer as it is; there is nothing to export");
  const std::vector<std::byte> block = codec::flat_bytes(flat);
  base::write_file_atomically(request.out, block);
  formats::ExportReport report;
  report.files = {request.out};
  report.serve =
      concat("kvcal_codebook_open(<bytes of ", request.out.string(), ">, ...), see docs/kernels.md");
  const std::uint32_t version = codec::check_flat(block).version;
  report.needs = concat("cuda/kernels/flat_format.h, version ", version, "; no library");
  report.beware = "keys are quantised before RoPE: rotate what is read back, never what is stored";
  if (version == KVCAL_FLAT_VERSION_TURNED)
    report.beware += "; values are stored turned: turn them, or attention's output, back";
  report.warnings = kernel_warnings(flat);
  if (!kept.empty())
    report.warnings.push_back(
        concat("the recipe keeps layers ", kept, " in 16 bits, so that the export leaves them out"));
  return report;
}

}  // namespace

formats::ExportTarget flat_target() {
  return {.name = "flat",
          .about = "one datatype as bytes that kernels read where they lie",
          .content = formats::ExportContent::datatypes,
          .takes_recipe = true,
          .write = write};
}

}  // namespace kvcal::calib
