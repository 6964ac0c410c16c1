#include "formats/export/export_target.h"

#include <algorithm>

#include "base/error.h"

namespace kvcal::formats {

#define KVCAL_EXPORT(name) ExportTarget name##_target();
#include "formats/export/targets/targets.inc"
#undef KVCAL_EXPORT

namespace {

const Magnitudes& magnitudes_of(const TensorCodebook& tensor, const LayerCodebook& layer,
                                const ScaleChoice& choice) {
  const bool rotated = tensor.tensor.thresholds == ThresholdScope::channel && layer.rope_json != "null";
  const std::optional<Magnitudes>* found = nullptr;
  if (tensor.magnitudes && rotated)
    found = choice.measured_keys ? &tensor.magnitudes->rotated : &tensor.magnitudes->envelope;
  if (!tensor.magnitudes || (found != nullptr && !*found)) {
    throw base::InvalidInput(base::concat("layer ", layer.index, ", ", tensor.tensor.name,
                                          "s: the codebook holds no magnitudes",
                                          tensor.magnitudes ? " of them after RoPE" : "",
                                          ", which files have from schema 1.2 on; calibrate anew"));
  }
  return found == nullptr ? tensor.magnitudes->cached : **found;
}

const MagnitudeGroup& group_of(const Magnitudes& magnitudes, ScaleScope scope) {
  switch (scope) {
    case ScaleScope::tensor:
      return magnitudes.tensor;
    case ScaleScope::head:
      return magnitudes.head;
    case ScaleScope::channel:
      break;
  }
  return magnitudes.channel;
}

// The column of a row of quantiles, or of best thresholds.
std::size_t column_of(const ScaleChoice& choice) {
  if (choice.clip == Clip::best) return static_cast<std::size_t>(choice.type);
  const double level = choice.clip == Clip::max ? 1 : choice.level;
  const auto found = std::ranges::find(kMagnitudeLevels, level);
  if (found == kMagnitudeLevels.end())
    throw base::WrongUsage(base::concat("no quantile ", level, " is kept"));
  return static_cast<std::size_t>(found - kMagnitudeLevels.begin());
}

std::vector<float> thresholds_of(const TensorCodebook& tensor, const LayerCodebook& layer,
                                 const ScaleChoice& choice) {
  const MagnitudeGroup& group = group_of(magnitudes_of(tensor, layer, choice), choice.scope);
  const bool best = choice.clip == Clip::best;
  const std::vector<float>& table = best ? group.best : group.quantiles;
  const std::size_t columns = best ? std::size_t{kScaledTypes} : kMagnitudeLevels.size();
  std::vector<float> thresholds;
  for (std::size_t at = column_of(choice); at < table.size(); at += columns) {
    if (!(table[at] > 0)) {
      throw base::InvalidInput(base::concat(
          "layer ", layer.index, ", ", tensor.tensor.name, "s: the threshold of ",
          choice.scope == ScaleScope::channel ? "channel "
          : choice.scope == ScaleScope::head  ? "head "
                                              : "tensor ",
          at / columns, " is 0, which no scale can express; use a wider scope (--per head or tensor)"));
    }
    thresholds.push_back(table[at]);
  }
  return thresholds;
}

}  // namespace

std::vector<LayerThresholds> scale_thresholds(const Codebook& codebook, const ScaleChoice& choice) {
  std::vector<LayerThresholds> layers;
  for (const LayerCodebook& layer : codebook.layers) {
    if (!layer.has_kv_heads()) {
      throw base::InvalidInput(base::concat("layer ", layer.index,
                                            " caches other tensors than keys and values of the same heads, ",
                                            "which no scales of theirs can describe"));
    }
    layers.push_back({layer.index, thresholds_of(layer.key(), layer, choice),
                      thresholds_of(layer.value(), layer, choice)});
  }
  return layers;
}

void refuse_rotation(const LayerCodebook& layer, std::string_view target) {
  for (const TensorCodebook& tensor : layer.tensors) {
    if (tensor.rotation_block == 0) continue;
    throw base::InvalidInput(base::concat(
        "layer ", layer.index, ", ", tensor.tensor.name, ": the codebook is of turned heads (",
        "--value-rotation), for which ", target, " has no place; calibrate with ", "--value-rotation none"));
  }
}

void refuse_ranges(int layer, const TensorCodebook& tensor, const Datatype& datatype,
                   std::string_view target) {
  if (!datatype.has_ranges()) return;
  throw base::InvalidInput(base::concat("layer ", layer, ", ", tensor.tensor.name, ": the datatype of ",
                                        datatype.bits, " bits has fitted ranges, for which ", target,
                                        " has no place; calibrate with --ranges threshold"));
}

double largest_code(ScaledType type) {
  switch (type) {
    case ScaledType::int8:
      return 128;
    case ScaledType::int4:
      return 8;
    case ScaledType::fp8:
      break;
  }
  return 448;
}

const std::vector<ExportTarget>& export_targets() {
  static const std::vector<ExportTarget> known = {
#define KVCAL_EXPORT(name) name##_target(),
#include "formats/export/targets/targets.inc"
#undef KVCAL_EXPORT
  };
  return known;
}

}  // namespace kvcal::formats
