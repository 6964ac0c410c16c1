// The scale file of ONNX Runtime GenAI's model builder (kv_cache_scale_file), for a symmetric static cache.
//
// Keys are quantised after RoPE, values as they are; real = scale * code, codes -128 to 127 (int8), -8 to 7
// (int4) or E4M3. The builder multiplies what it reads by qmax / the target's own, so qmax is always written.
#include <charconv>
#include <limits>

#include "base/error.h"
#include "base/new_file.h"
#include "formats/export/export_target.h"
#include "formats/internal/shell_word.h"

namespace kvcal::formats {

ExportTarget onnx_genai_target();

namespace {

using base::concat;
using base::InvalidInput;

// GroupQueryAttention with RoPE inside has no kernel for other sizes of a head.
constexpr int kHeadStep = 16;

const char* type_name(ScaledType type) {
  switch (type) {
    case ScaledType::int8:
      return "int8";
    case ScaledType::int4:
      return "int4";
    case ScaledType::fp8:
      break;
  }
  return "fp8";
}

std::string scheme_name(const ScaleChoice& choice) {
  return concat(type_name(choice.type), choice.scope == ScaleScope::tensor ? "_per_tensor" : "_per_channel");
}

// The file names layers by their place in the model, and the builder wants all of them.
void check_all_layers(const Codebook& codebook) {
  for (int i = 0; i < codebook.model.num_layers; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (at >= codebook.layers.size() || codebook.layers[at].index != i) {
      throw InvalidInput(concat("layer ", i, ": the codebook lacks it, and onnx-genai needs scales of all ",
                                codebook.model.num_layers, " layers; calibrate the whole model"));
    }
  }
}

// One size of heads for the whole model, and no layer with a window of its own.
void check_layer(const LayerCodebook& layer, const LayerCodebook& first) {
  if (!layer.has_kv_heads() || layer.tensors.size() != 2)
    throw InvalidInput(concat("layer ", layer.index, ": caches other tensors than keys and values of the ",
                              "same heads, for which onnx-genai has no scales"));
  if (layer.window > 0) {
    throw InvalidInput(concat("layer ", layer.index, ": attends through a sliding window of ", layer.window,
                              " tokens, whose cache onnx-genai does not quantise reliably"));
  }
  const CachedTensor& key = layer.key().tensor;
  const int value_dim = layer.value().tensor.dim;
  if (key.dim != value_dim) {
    throw InvalidInput(concat("layer ", layer.index, ": keys have ", key.dim, " numbers per head, values ",
                              value_dim, "; onnx-genai takes one size for both"));
  }
  if (key.dim % kHeadStep != 0) {
    throw InvalidInput(concat("layer ", layer.index, ": heads have ", key.dim, " numbers; with RoPE in the ",
                              "kernel onnx-genai takes multiples of ", kHeadStep));
  }
  if (key.heads != first.key().tensor.heads || key.dim != first.key().tensor.dim) {
    throw InvalidInput(concat("layer ", layer.index, ": has ", key.heads, " heads of ", key.dim, ", layer ",
                              first.index, " ", first.key().tensor.heads, " of ", first.key().tensor.dim,
                              "; onnx-genai takes one shape for all"));
  }
}

void check_codebook(const Codebook& codebook) {
  check_all_layers(codebook);
  for (const LayerCodebook& layer : codebook.layers) check_layer(layer, codebook.layers.front());
}

// The shortest text that reads back as the same float.
std::string number_text(float number) {
  char text[32];
  const auto result = std::to_chars(text, text + sizeof(text), number);
  return {text, result.ptr};
}

// thresholds / qmax as "[s, s, ...]". The builder takes scales as float32 and refuses 0; subnormal ones have
// lost digits, and a processor that flushes them makes them 0.
std::string scales_text(const std::vector<float>& thresholds, double qmax, const std::string& what) {
  std::string text = "[";
  for (std::size_t i = 0; i < thresholds.size(); ++i) {
    const float scale = thresholds[i] / static_cast<float>(qmax);
    if (!(scale >= std::numeric_limits<float>::min())) {
      throw InvalidInput(concat(what, ": the threshold of element ", i, " is ", thresholds[i],
                                ", whose scale a float32 cannot hold; choose a wider scope (--per tensor)"));
    }
    text += (i == 0 ? "" : ", ") + number_text(scale);
  }
  return text + "]";
}

std::string all_scales_text(const std::vector<LayerThresholds>& layers,
                            std::vector<float> LayerThresholds::*tensor, double qmax, const char* name) {
  std::string text = "[";
  for (const LayerThresholds& layer : layers) {
    text += (text.size() == 1 ? "\n    " : ",\n    ") +
            scales_text(layer.*tensor, qmax, concat("layer ", layer.layer, ", ", name));
  }
  return text + "]";
}

std::string file_text(const Codebook& codebook, const ScaleChoice& choice) {
  const double qmax = largest_code(choice.type);
  const std::vector<LayerThresholds> layers = scale_thresholds(codebook, choice);
  std::string ids;
  for (const LayerThresholds& layer : layers) ids += (ids.empty() ? "" : ", ") + std::to_string(layer.layer);
  return concat(
      "{\n  \"scales\": {\n   \"k_scales\": ", all_scales_text(layers, &LayerThresholds::key, qmax, "key"),
      ",\n   \"v_scales\": ", all_scales_text(layers, &LayerThresholds::value, qmax, "value"),
      "},\n  \"layer_ids\": [", ids, "],\n  \"qmax\": ", static_cast<int>(qmax), "\n}\n");
}

ExportReport report_of(const ExportRequest& request) {
  const ScaleChoice& choice = request.scales;
  const bool fp8 = choice.type == ScaledType::fp8;
  ExportReport report;
  report.files = {request.out};
  report.serve = concat("python -m onnxruntime_genai.models.builder -i ",
                        request.model.empty() ? "MODEL" : shell_word(request.model.string()), " -o OUT ",
                        fp8 ? "-p fp16 -e cuda" : "-p fp32 -e cpu",
                        " --extra_options kv_cache_quant_scheme=", scheme_name(choice), " ",
                        shell_word("kv_cache_scale_file=" + request.out.string()));
  report.needs =
      "onnxruntime-genai 0.16.0 with onnxruntime 1.30.0, or onnxruntime-genai 0.18.0 with onnxruntime 1.31.0";
  report.beware =
      "the builder passes over an option that it does not know (a misspelt name), and a scale file without "
      "kv_cache_quant_scheme, without a word, and the cache is float: its log must have the line \"Saving "
      "model.layers.0.attn.k_scale\"";
  if (fp8) {
    report.warnings.emplace_back(
        "ONNX Runtime 1.32 has no CPU kernel for an fp8 cache: the builder accepts it with -e cpu, the "
        "session then "
        "fails with NOT_IMPLEMENTED");
  }
  if (choice.measured_keys) {
    report.warnings.push_back(
        concat("scales of keys as measured hold for positions that the calibration saw (windows of ",
               request.codebook.calibration.seqlen, " tokens); without --measured-keys they hold for any"));
  }
  return report;
}

ExportReport write(const ExportRequest& request) {
  if (request.scales.scope == ScaleScope::head)
    throw base::WrongUsage("onnx-genai has no scales per head: --per may be tensor or channel");
  check_codebook(request.codebook);
  base::write_file_atomically(request.out, file_text(request.codebook, request.scales));
  return report_of(request);
}

}  // namespace

ExportTarget onnx_genai_target() {
  return {.name = "onnx-genai",
          .about = "scales for the model builder of ONNX Runtime GenAI (JSON)",
          .content = ExportContent::scales,
          .write = write};
}

}  // namespace kvcal::formats
