// quantizers.pickle, as the code of KVQuant (Hooper et al. 2024) writes and reads it: docs/exports/kvquant.md.
//
// A dict: "model.layers.N.self_attn.k_proj" and ".v_proj" -> (upper, lower, [centroids]), with Q-Norm two more:
// (upper, lower, [centroids], scale, offset).
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/new_file.h"
#include "formats/export/export_target.h"
#include "formats/export/pickle_writer.h"
#include "formats/internal/shell_word.h"

namespace kvcal::formats {

ExportTarget kvquant_target();

namespace {

using base::concat;

// The deployment code's LlamaAttention builds its caches for 32 heads whatever the model has, and its rows of
// outliers have 42 places: 2 * (0.5 % of 4096 channels, rounded down, + 1).
constexpr int kHeads = 32;
constexpr std::int64_t kHidden = 4096;
constexpr double kFraction = 0.01;

constexpr std::string_view kPickle = "KVQuant's pickle";

// The least magnitude that rounds to infinity in fp16, in which both readers take thresholds.
constexpr float kHalfOverflow = 65520;

[[noreturn]] void refuse(int layer, std::string_view tensor, const std::string& reason) {
  throw base::InvalidInput(concat("layer ", layer, tensor.empty() ? "" : ", ", tensor, ": ", reason));
}

void check_layer(const LayerCodebook& layer, const ModelInfo& model) {
  refuse_rotation(layer, kPickle);
  for (const TensorCodebook& tensor : layer.tensors) {
    const std::string& name = tensor.tensor.name;
    if (name != "key" && name != "value")
      refuse(layer.index, name, "KVQuant's pickle has no place for another tensor than key and value");
  }
  if (!layer.has_kv_heads()) {
    refuse(layer.index, "",
           "KVQuant's pickle takes keys with thresholds by channel and values with thresholds by token, of "
           "equally many heads");
  }
  const int heads = layer.key().tensor.heads;
  if (heads != model.num_attention_heads) {
    refuse(layer.index, "key",
           concat("GQA: ", heads, " kv heads for ", model.num_attention_heads,
                  " attention heads; KVQuant's deployment code takes MHA only"));
  }
}

// What both readers compute in fp16 must not become infinite there.
void check_thresholds(int layer, const OutlierSet& set) {
  for (std::size_t channel = 0; channel < set.upper.size(); ++channel) {
    const float upper = set.upper[channel];
    const float lower = set.lower[channel];
    const float largest =
        std::max({std::abs(upper), std::abs(lower), std::abs(upper + lower), std::abs(upper - lower)});
    if (largest >= kHalfOverflow) {
      refuse(layer, "key",
             concat("the thresholds ", lower, " and ", upper, " of channel ", channel,
                    " become infinite in fp16, in which KVQuant's code adds and subtracts them"));
    }
  }
}

void write_row(PickleWriter& pickle, std::span<const float> row) {
  pickle.float_tensor(row, std::array{std::int64_t{1}, static_cast<std::int64_t>(row.size())});
}

void write_scalar(PickleWriter& pickle, double value) {
  pickle.float_tensor(std::array{static_cast<float>(value)}, std::array{std::int64_t{1}});
}

void write_entry(PickleWriter& pickle, int layer, const TensorCodebook& tensor,
                 const DatatypeChoice& choice) {
  const bool keys = tensor.tensor.thresholds == ThresholdScope::channel;
  const auto [set, datatype] = require_datatype(layer, tensor, choice);
  refuse_ranges(layer, tensor, *datatype, kPickle);
  pickle.text(concat("model.layers.", layer, ".self_attn.", keys ? "k_proj" : "v_proj"));
  pickle.begin_tuple();
  if (keys) {
    check_thresholds(layer, *set);
    write_row(pickle, set->upper);
    write_row(pickle, set->lower);
  } else {
    // Placeholders. In the original these are a pair for each token of its calibration text, which nobody uses: a
    // token's thresholds are found when it is quantised. The normalised range itself does no harm to who would.
    write_row(pickle, std::array{1.0F});
    write_row(pickle, std::array{-1.0F});
  }
  pickle.begin_list();
  const std::vector<float>& centroids = datatype->centroids;
  pickle.float_tensor(centroids, std::array{static_cast<std::int64_t>(centroids.size()), std::int64_t{1}});
  pickle.end();
  if (choice.qnorm) {
    write_scalar(pickle, datatype->qnorm_scale);
    write_scalar(pickle, datatype->qnorm_offset);
  }
  pickle.end();
}

std::string pickle_of(const Codebook& codebook, const DatatypeChoice& choice) {
  if (codebook.calibration.value_scope == "head") {
    throw base::InvalidInput(
        "layer " + std::to_string(codebook.layers.front().index) +
        ", value: fitted with thresholds of each kv head (--value-scope head), and KVQuant's code takes a "
        "token's over all heads; calibrate with --value-scope token");
  }
  PickleWriter pickle;
  pickle.begin_dict();
  for (const LayerCodebook& layer : codebook.layers) {
    check_layer(layer, codebook.model);
    write_entry(pickle, layer.index, layer.key(), choice);
    write_entry(pickle, layer.index, layer.value(), choice);
  }
  pickle.end();
  return pickle.finish();
}

std::string missing_layers(const Codebook& codebook) {
  std::string missing;
  for (int layer = 0; layer < codebook.model.num_layers; ++layer) {
    const auto held = [layer](const LayerCodebook& other) { return other.index == layer; };
    if (std::ranges::none_of(codebook.layers, held))
      missing += (missing.empty() ? "" : ", ") + std::to_string(layer);
  }
  return missing;
}

// Of what KVQuant's deployment code cannot run, though the file says it.
std::vector<std::string> warnings_of(const Codebook& codebook, const DatatypeChoice& choice) {
  std::vector<std::string> warnings;
  const CachedTensor& key = codebook.layers.front().key().tensor;
  if (codebook.model.architecture != "LlamaForCausalLM")
    warnings.push_back(concat("KVQuant's deployment code runs LlamaForCausalLM only; this model is ",
                              codebook.model.architecture));
  if (key.heads != kHeads || key.channels() != kHidden) {
    warnings.push_back(concat("KVQuant's deployment code assumes ", kHeads, " heads and ", kHidden,
                              " channels; this model has ", key.heads, " and ", key.channels(),
                              ", so that only its simulation can use the file"));
  }
  if (choice.bits < 2 || choice.bits > 4) {
    warnings.push_back(
        concat("KVQuant's deployment code has kernels for 2, 3 and 4 bits, not for ", choice.bits));
  }
  if (choice.fraction == 0) {
    warnings.emplace_back(
        "without outliers KVQuant's deployment code takes one token at a time: a prompt of several needs "
        "--include_sparse");
  } else if (outlier_group_name(choice.fraction) != outlier_group_name(kFraction)) {
    warnings.push_back(concat("KVQuant's deployment code has rows for the outliers of just ", 100 * kFraction,
                              " % of the channels; this export has ", 100 * choice.fraction, " %"));
  }
  if (choice.qnorm && choice.bits > 2) {
    warnings.push_back(concat("KVQuant's kernels for ", choice.bits,
                              " bits multiply with the table without Q-Norm; only those for 2 bits use it"));
  }
  if (const std::string missing = missing_layers(codebook); !missing.empty()) {
    warnings.push_back(concat("the codebook lacks layers that the model has (", missing,
                              "): KVQuant's deployment code loads no table for them and does not say so"));
  }
  return warnings;
}

std::string serve_command(const ExportRequest& request, const DatatypeChoice& choice) {
  std::string command = concat("python llama.py MODEL wikitext2 --abits ", choice.bits, " --quantizer-path ",
                               shell_word(request.out.string()));
  if (choice.fraction > 0) command += concat(" --include_sparse --sparsity-threshold ", 1 - choice.fraction);
  if (choice.qnorm) command += " --norm";
  if (const int sinks = request.codebook.calibration.sinks; sinks > 0)
    command += concat(" --first_few_fp16 ", sinks);
  return command + " --maxseqlen 2048 --benchmark 128 --check";
}

ExportReport write_kvquant(const ExportRequest& request) {
  if (!request.datatype) throw base::WrongUsage("kvquant exports one datatype; name it, such as nuq3-1%");
  const DatatypeChoice& choice = *request.datatype;
  // Before the file is made: a codebook that is refused leaves nothing behind.
  const std::string pickle = pickle_of(request.codebook, choice);
  ExportReport report{
      .files = {request.out},
      .serve = serve_command(request, choice),
      .needs =
          "KVQuant's deployment/ folder with its own transformers and CUDA kernels, flash-attention 2, one "
          "NVIDIA GPU",
      .beware =
          "without --abits the file is not read, without --benchmark none of it is used, and neither is "
          "said: the log must show two lines 'k:' for each layer",
      .warnings = warnings_of(request.codebook, choice),
  };
  base::write_file_atomically(request.out, std::string_view(pickle));
  return report;
}

}  // namespace

ExportTarget kvquant_target() {
  return {.name = "kvquant",
          .about = "quantizers.pickle of KVQuant's own simulation and deployment code (MHA only)",
          .content = ExportContent::datatypes,
          .needs_model = false,
          .write = write_kvquant};
}

}  // namespace kvcal::formats
