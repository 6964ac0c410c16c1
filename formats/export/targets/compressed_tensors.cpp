// compressed-tensors: an overlay whose FP8 cache scales vLLM, SGLang and transformers load. The configuration is
// that of the compressed-tensors package for a model of which the cache alone is quantised
// (docs/exports/compressed-tensors.md).
#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "formats/export/export_target.h"
#include "formats/export/overlay.h"
#include "formats/internal/kv_scales.h"
#include "formats/internal/shell_word.h"

namespace kvcal::formats {

ExportTarget compressed_tensors_target();

namespace {

using base::concat;

constexpr std::string_view kName = "compressed-tensors";

/// The ratio is null in the package's own files too; config_groups must be there, empty or not.
std::string quantization_config(bool heads) {
  return concat(
      R"({"quant_method": "compressed-tensors", "format": "dense", "quantization_status": "frozen",)",
      R"("global_compression_ratio": null, "config_groups": {}, "ignore": [], "kv_cache_scheme": )",
      kv_scales::compressed_tensors_scheme(heads), "}");
}

/// What is known to lose scales of an architecture.
struct KnownLoss {
  std::string_view architecture, what;
};

constexpr std::string_view kSglangNoRemap =
    "SGLang 0.5.23 does not map the names of scales for this architecture: it runs with 1.0";
constexpr std::string_view kSglangPerhaps =
    "SGLang 0.5.23: the model's own file does not map the names of scales; look for 'is not loaded' and 'not "
    "found "
    "in params_dict' in its log";
constexpr std::string_view kVllmMoe =
    "vLLM older than March 2026 skips the scales of this architecture: it runs with 1.0";
constexpr std::string_view kVllmHybrid =
    "vLLM up to 0.27.1 drops the scales of this architecture: it runs with 1.0";

constexpr std::array kKnownLosses = {
    KnownLoss{"Qwen2ForCausalLM", kSglangNoRemap},
    KnownLoss{"Qwen3MoeForCausalLM", kSglangNoRemap},
    KnownLoss{"Qwen3MoeForCausalLM", kVllmMoe},
    KnownLoss{"Qwen3VLMoeForConditionalGeneration", kVllmMoe},
    KnownLoss{"Qwen3_5ForConditionalGeneration", kVllmHybrid},
    KnownLoss{"MixtralForCausalLM", kSglangNoRemap},
    KnownLoss{"MistralForCausalLM", kSglangPerhaps},
    KnownLoss{"GptOssForCausalLM", kSglangPerhaps},
    KnownLoss{"Glm4ForCausalLM", kSglangPerhaps},
    KnownLoss{"GemmaForCausalLM", kSglangPerhaps},
    KnownLoss{"GraniteForCausalLM", kSglangPerhaps},
    KnownLoss{"PhiForCausalLM", kSglangPerhaps},
    KnownLoss{"InternLM2ForCausalLM", kSglangPerhaps},
    KnownLoss{"Starcoder2ForCausalLM", kSglangPerhaps},
};

std::vector<std::string> warnings_of(const Codebook& codebook, const std::vector<LayerScales>& scales,
                                     bool heads) {
  std::vector<std::string> warnings = scale_warnings(codebook, scales);
  if (heads) {
    warnings.emplace_back("scales of heads: vLLM has them with FlashAttention 3 only (Hopper)");
    warnings.emplace_back("scales of heads: SGLang ignores them and runs without scales");
  }
  for (const KnownLoss& loss : kKnownLosses) {
    if (loss.architecture == codebook.model.architecture)
      warnings.push_back(concat(loss.architecture, ": ", loss.what));
  }
  return warnings;
}

ExportReport write(const ExportRequest& request) {
  check_fp8_choice(request.scales, kName, true);
  const bool heads = request.scales.scope == ScaleScope::head;
  const Overlay overlay(request);
  const std::vector<LayerScales> scales = overlay.scales();
  OverlayContent content;
  content.scales = kv_scales::compressed_tensors_names(scales, heads);
  content.quantization_config = quantization_config(heads);
  ExportReport report = kv_scales::compressed_tensors_report(request.codebook, scales, heads, request.out);
  report.files = overlay.write(content);
  return report;
}

}  // namespace

std::string kv_scales::compressed_tensors_scheme(bool heads) {
  // group_size is null in the package's own files too; a key that it does not know is an error to it.
  return concat(R"({"num_bits": 8, "type": "float", "strategy": ")", heads ? "attn_head" : "tensor",
                R"(", "dynamic": false, "symmetric": true, "group_size": null})");
}

ExportReport kv_scales::compressed_tensors_report(const Codebook& codebook,
                                                  const std::vector<LayerScales>& scales, bool heads,
                                                  const std::filesystem::path& folder) {
  ExportReport report;
  const std::string out = shell_word(folder.string());
  report.serve = concat("vllm serve ", out, " --kv-cache-dtype fp8");
  if (!heads)
    report.serve +=
        concat("\npython -m sglang.launch_server --model-path ", out, " --kv-cache-dtype fp8_e4m3");
  report.serve += concat("\nAutoModelForCausalLM.from_pretrained(", python_string(folder.string()),
                         ") of transformers: a simulation");
  report.needs = concat("vLLM 0.15.0; ", heads ? "" : "SGLang 0.5.20; ",
                        "transformers 5.16.0 (not 5.15) with compressed-tensors 0.15.0");
  report.beware =
      "vLLM runs with a scale of 1.0 where one is missing and logs nothing; 'is not loaded' (vLLM, SGLang), "
      "'Using KV "
      "cache scaling factor 1.0', 'not found in params_dict' and 'Ignoring compressed-tensors "
      "kv_cache_scheme' mean "
      "that scales are lost, as does k_scale MISSING or UNEXPECTED in the load report of transformers";
  report.warnings = warnings_of(codebook, scales, heads);
  return report;
}

ExportTarget compressed_tensors_target() {
  return {.name = kName,
          .about = "FP8 scales beside the model, for vLLM, SGLang and transformers",
          .content = ExportContent::scales,
          .needs_model = true,
          .merges = true,
          .usual = {.type = ScaledType::fp8, .scope = ScaleScope::tensor},
          .write = write};
}

}  // namespace kvcal::formats
