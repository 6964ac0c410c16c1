// modelopt: an overlay with the files and tensor names of NVIDIA ModelOpt for a model of which the cache alone is FP8:
// hf_quant_config.json, and scales at the projections of keys and values. config.json stays as it is
// (docs/exports/modelopt.md).
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "formats/export/export_target.h"
#include "formats/export/overlay.h"
#include "formats/internal/kv_scales.h"
#include "formats/internal/shell_word.h"

namespace kvcal::formats {

ExportTarget modelopt_target();

namespace {

using base::concat;
using nlohmann::ordered_json;

constexpr std::string_view kName = "modelopt";

/// No weight is quantised, so the algorithm of weights is null.
std::string quant_config(const Codebook& codebook) {
  const ordered_json config = {{"producer", {{"name", "kvcal"}, {"version", codebook.created_by}}},
                               {"quantization", {{"quant_algo", nullptr}, {"kv_cache_quant_algo", "FP8"}}}};
  return config.dump(2) + "\n";
}

ExportReport write(const ExportRequest& request) {
  check_fp8_choice(request.scales, kName, false);
  const Overlay overlay(request);
  const std::vector<LayerScales> scales = overlay.scales();
  OverlayContent content;
  content.scales = kv_scales::modelopt_names(scales);
  content.files.push_back({"hf_quant_config.json", quant_config(request.codebook)});
  ExportReport report;
  report.files = overlay.write(content);
  report.serve = concat("trtllm-serve ", shell_word(request.out.string()), " --kv_cache_dtype fp8");
  report.needs = "TensorRT-LLM of March 2026, which first has --kv_cache_dtype";
  report.beware =
      "TensorRT-LLM's PyTorch backend does not read FP8 cache scales: it runs with 1.0, and no line in its "
      "log is known to tell";
  report.warnings = scale_warnings(request.codebook, scales);
  report.warnings.emplace_back(
      "no known loader uses these scales: TensorRT-LLM runs an FP8 cache at 1.0, whatever the file says");
  report.warnings.emplace_back(
      "vLLM 0.33 and SGLang 0.5.23 refuse a ModelOpt folder whose weights are not quantised (no quant_algo): "
      "use "
      "--format compressed-tensors for them");
  return report;
}

}  // namespace

ExportTarget modelopt_target() {
  return {.name = kName,
          .about = "FP8 scales beside the model, named as ModelOpt names them, for TensorRT-LLM",
          .content = ExportContent::scales,
          .needs_model = true,
          .merges = true,
          .usual = {.type = ScaledType::fp8, .scope = ScaleScope::tensor},
          .write = write};
}

}  // namespace kvcal::formats
