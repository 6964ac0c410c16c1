// tests/formats/sample_codebook.h: a small codebook with every field set.
#pragma once

#include <string>
#include <vector>

#include "formats/codebook.h"

namespace kvcal::formats::testing {

inline std::vector<float> ramp(int count, float first, float step) {
  std::vector<float> values;
  for (int i = 0; i < count; ++i) values.push_back(first + static_cast<float>(i) * step);
  return values;
}

inline TensorCodebook sample_tensor(const CachedTensor& described, float seed) {
  TensorCodebook tensor;
  tensor.tensor = described;
  const int channels = static_cast<int>(described.channels());
  tensor.fisher_channel = ramp(channels, seed, 0.25F);
  tensor.halves = {0.0125, 0.5};
  if (described.thresholds == ThresholdScope::token)
    tensor.rotation_block = described.dim & (~described.dim + 1);
  for (const double fraction : {0.0, 0.01}) {
    OutlierSet set;
    set.fraction = fraction;
    if (described.thresholds == ThresholdScope::channel) {
      set.lower = ramp(channels, -3.5F - seed, 0.1F);
      set.upper = ramp(channels, 2.25F + seed, 0.3F);
    }
    for (const int bits : {2, 3}) {
      Datatype datatype;
      datatype.bits = bits;
      datatype.centroids = ramp(1 << bits, -0.9F, 1.8F / static_cast<float>(1 << bits));
      datatype.qnorm_scale = 1.03;
      datatype.qnorm_offset = -0.002;
      datatype.objective = 12.5 + seed;
      datatype.lower_bound = 12.25;
      datatype.weights = bits == 2 ? "uniform" : "fisher";
      if (bits == 2 && !set.lower.empty()) {
        datatype.scale = ramp(channels, 2.5F + seed, 0.2F);
        datatype.zero = ramp(channels, -0.5F, 0.1F);
        datatype.histogram = ramp(kHistogramBins, 0, 1.0F / 8128);
      }
      set.datatypes.push_back(datatype);
    }
    set.histogram = ramp(kHistogramBins, 0, 1.0F / 8128);
    tensor.outliers.push_back(set);
    tensor.with_sinks.push_back(set);
    if (set.lower.empty()) continue;
    set.histogram.clear();
    set.datatypes.clear();
    tensor.rotated.push_back(set);
  }
  const auto rows = [&](int count, float first) {
    return MagnitudeGroup{ramp(count * 8, first, 0.25F), ramp(count * 3, first, 0.125F)};
  };
  const auto magnitudes = [&](float first) {
    return Magnitudes{rows(channels, first), rows(described.heads, first + 1), rows(1, first + 2)};
  };
  tensor.magnitudes = {magnitudes(seed), {}, {}};
  if (described.thresholds == ThresholdScope::channel) {
    tensor.magnitudes->rotated = magnitudes(seed + 3);
    tensor.magnitudes->envelope = magnitudes(seed + 6);
  }
  return tensor;
}

/// The tensors of a family that caches keys and values.
inline std::vector<TensorCodebook> sample_tensors(int kv_heads, int key_dim, int value_dim, float key_seed) {
  return {sample_tensor({"key", kv_heads, key_dim, ThresholdScope::channel}, key_seed),
          sample_tensor({"value", kv_heads, value_dim, ThresholdScope::token}, 0.5F)};
}

inline Codebook sample_codebook(std::vector<int> layers = {0, 2}) {
  Codebook codebook;
  codebook.created_by = "kvcal 0.1.0";
  codebook.model = {
      "TinyStories-656K",         "LlamaForCausalLM", std::string(64, 'a'), std::string(64, 'b'), 3, 4, 2, 4,
      R"({"rope_theta":10000.0})"};
  codebook.calibration.options_json = R"({"bits":[2,3],"outliers":[0,0.01]})";
  codebook.calibration.texts = {{"wiki.valid.raw", std::string(64, 'c')},
                                {"stôries \"2\".txt", std::string(64, 'd')}};
  codebook.calibration.tokens_sha256 = std::string(64, 'e');
  codebook.calibration.samples = 16;
  codebook.calibration.seqlen = 2048;
  codebook.calibration.tokens = 32768;
  codebook.calibration.bos = "each";
  codebook.calibration.sinks = 1;
  codebook.calibration.seed = -7;
  codebook.calibration.dtype = "float32";
  codebook.calibration.device = "cpu";
  codebook.calibration.value_scope = "token";
  codebook.calibration.revision = 2;
  codebook.calibration.sensitivity = "fisher";
  codebook.calibration.fisher_scale = "range";
  codebook.calibration.loss = 3.25;
  for (const int index : layers) {
    LayerCodebook layer;
    layer.index = index;
    layer.rope_json = R"({"rope_theta":10000.0})";
    layer.window = index == 2 ? 4096 : 0;
    layer.tensors = sample_tensors(2, 4, 3, static_cast<float>(index));
    codebook.layers.push_back(layer);
  }
  return codebook;
}

/// Every tensor by its last datatype; the last one is kept as it is.
inline void add_recipe(Codebook& codebook) {
  codebook.recipe = {R"({"bits_per_value":3})",     "measured", 4096, 1234, 2.75, 0.0625,
                     {2.25F, 0.5F, 2.75F, 0.0625F}, {}};
  for (const LayerCodebook& layer : codebook.layers) {
    for (const TensorCodebook& tensor : layer.tensors) {
      const OutlierSet& set = tensor.outliers.back();
      codebook.recipe->tensors.push_back(
          {layer.index, tensor.tensor.name, set.datatypes.back().bits, set.fraction, 0.0625});
    }
  }
  codebook.recipe->tensors.back().bits = kKeptBits;
}

/// One layer, and one fraction and datatype in each place: all kinds of parts, as small as may be, for the fuzzers.
inline Codebook small_codebook() {
  Codebook codebook = sample_codebook({0});
  for (TensorCodebook& tensor : codebook.layers.front().tensors) {
    for (auto* const sets : {&tensor.outliers, &tensor.with_sinks, &tensor.rotated}) {
      if (sets->size() > 1) sets->erase(sets->begin());
      for (OutlierSet& set : *sets)
        if (set.datatypes.size() > 1) set.datatypes.pop_back();
    }
  }
  add_recipe(codebook);
  return codebook;
}

}  // namespace kvcal::formats::testing
