#include "formats/export/merge.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/new_file.h"
#include "formats/checkpoint.h"
#include "formats/export/overlay.h"
#include "formats/internal/export_check.h"
#include "formats/internal/json.h"
#include "formats/internal/json_edit.h"
#include "formats/internal/kv_scales.h"
#include "formats/internal/shell_word.h"
#include "formats/json.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;
using export_check::count_of;
using export_check::is_bool;
using export_check::is_number;
using export_check::is_there;
using export_check::member;
using export_check::text_of;
using kv_scales::kConfig;
using kv_scales::kIndex;
using kv_scales::kModelOptConfig;
using kv_scales::kSingle;
using nlohmann::json;
using nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr std::string_view kCompressedTensors = "compressed-tensors";
constexpr std::string_view kModelOpt = "modelopt";
constexpr std::string_view kMixedConfig = "quant_cfg.json";  // of ModelOpt's mixed precision
/// ModelOpt's own files have no more keys than these, and vLLM and SGLang ask for no more.
constexpr std::string_view kModelOptScheme = R"({"dynamic": false, "num_bits": 8, "type": "float"})";

/// Whose form the scales take: vLLM maps the names of compressed-tensors for block-wise fp8 too.
enum class Method { compressed_tensors, modelopt, fp8 };

class Merge {
 public:
  Merge(const Codebook& codebook, const ScaleChoice& choice, const fs::path& folder)
      : codebook_(codebook),
        choice_(choice),
        folder_(folder),
        checkpoint_(folder),
        config_text_(kv_scales::read_object(folder / kConfig)),
        config_(parse_json(config_text_, (folder / kConfig).string())) {}

  ExportReport run(std::string_view format) {
    find_method();
    check_format(format);
    check_sizes();
    plan_configuration();
    const std::vector<LayerScales> layers = kv_scales::layer_scales(codebook_, choice_, checkpoint_);
    scales_ = method_ == Method::modelopt ? kv_scales::modelopt_names(layers)
                                          : kv_scales::compressed_tensors_names(layers, by_head());
    check_existing();
    plan_index();
    ExportReport report = report_of(layers);
    report.files = write();
    return report;
  }

 private:
  struct Edit {
    std::string name, text;
  };

  [[nodiscard]] std::string path_of(std::string_view name) const { return (folder_ / name).string(); }
  [[nodiscard]] bool by_head() const { return choice_.scope == ScaleScope::head; }
  [[nodiscard]] const json* quantization() const {
    const json* found = &config_;
    for (const std::string& key : place_) found = member(found, key.c_str());
    return place_.empty() ? nullptr : found;
  }

  void find_method() {
    std::string where, method;
    const ordered_json ordered = parse_ordered_json(config_text_, path_of(kConfig));
    if (const ordered_json* found = kv_scales::quantization_of(ordered, where)) {
      constexpr std::string_view kText = "text_config";
      if (where.starts_with(kText)) place_.emplace_back(kText);
      place_.push_back(where.substr(place_.empty() ? 0 : kText.size() + 1));
      method = kv_scales::method_of(*found);
    } else if (is_there(folder_ / kModelOptConfig)) {
      method = kModelOpt;
    } else {
      throw InvalidInput(concat(path_of(kConfig), ": has no quantization_config to merge scales into; use ",
                                "--out (with --model) for an overlay of a model that is not quantised"));
    }
    constexpr auto kKnown =
        std::to_array<std::pair<std::string_view, Method>>({{kCompressedTensors, Method::compressed_tensors},
                                                            {kModelOpt, Method::modelopt},
                                                            {"fp8", Method::fp8}});
    const auto* known = std::ranges::find(kKnown, method, &std::pair<std::string_view, Method>::first);
    if (known == kKnown.end()) {
      throw InvalidInput(concat(path_of(kConfig), ": its quant_method is ", export_check::one_line(method),
                                ", for which no loader is known to use scales of a cache (it is for ",
                                "compressed-tensors, modelopt and fp8); take such a checkpoint, or the ",
                                "unquantised model with --out"));
    }
    method_ = known->second;
  }

  void check_format(std::string_view format) const {
    const std::string_view has = method_ == Method::modelopt ? kModelOpt : kCompressedTensors;
    if (!format.empty() && format != has) {
      throw InvalidInput(concat(folder_.string(), ": is a checkpoint of quant_method ",
                                method_ == Method::fp8 ? "fp8" : has,
                                ", whose loaders do not know the names of ", format, "; use --format ", has));
    }
    check_fp8_choice(choice_,
                     method_ == Method::fp8 ? std::string_view("a checkpoint of quant_method fp8") : has,
                     method_ == Method::compressed_tensors);
  }

  [[nodiscard]] std::optional<int> config_count(const char* key) const {
    const json* found = member(&config_, key);
    constexpr int kMost = 1'000'000;
    return count_of(found != nullptr ? found : member(member(&config_, "text_config"), key), kMost);
  }

  void check_sizes() const {
    const ModelInfo& model = codebook_.model;
    const std::optional<int> heads = config_count("num_attention_heads");
    std::optional<int> kv_heads = config_count("num_key_value_heads");
    if (!kv_heads) kv_heads = heads;
    std::optional<int> head_dim = config_count("head_dim");
    const std::optional<int> hidden = config_count("hidden_size");
    if (!head_dim && hidden && heads && *heads > 0) head_dim = *hidden / *heads;
    check_size("layers (num_hidden_layers)", config_count("num_hidden_layers"), model.num_layers);
    check_size("kv heads (num_key_value_heads)", kv_heads, model.num_kv_heads);
    check_size("numbers a head (head_dim)", head_dim, model.head_dim);
  }

  void check_size(std::string_view what, const std::optional<int>& says, int expected) const {
    if (says == expected) return;
    throw InvalidInput(says ? concat(path_of(kConfig), ": says ", *says, " ", what, ", the codebook ",
                                     expected, ": of another model; calibrate the model that was quantised")
                            : concat(path_of(kConfig), ": does not say how many ", what,
                                     " the model has; take the model's own file"));
  }

  /// Throws where a scheme says something else than the one to be written.
  void check_scheme(const json& scheme) const {
    const json* symmetric = member(&scheme, "symmetric");
    if (is_number(member(&scheme, "num_bits"), 8) && text_of(member(&scheme, "type")) == "float" &&
        is_bool(member(&scheme, "dynamic"), false) && (symmetric == nullptr || is_bool(symmetric, true)))
      return;
    throw InvalidInput(concat(path_of(kConfig),
                              ": has a kv_cache_scheme that is not 8 bit float, static and ",
                              "symmetric; take a checkpoint without one, or remove it and its scales"));
  }

  void check_algorithm(std::string_view file, const json* object) const {
    const json* algorithm = member(object, "kv_cache_quant_algo");
    if (algorithm == nullptr || text_of(algorithm) == "FP8") return;
    throw InvalidInput(concat(path_of(file), ": its kv_cache_quant_algo is ",
                              export_check::one_line(algorithm->dump()),
                              ", to which FP8 scales do not belong; take a checkpoint without one"));
  }

  /// A group whose targets are attention modules quantises queries, keys and values by itself.
  void check_groups() const {
    const json* groups = member(quantization(), "config_groups");
    if (groups == nullptr || !groups->is_object()) {
      throw InvalidInput(concat(path_of(kConfig), ": its quantization_config has no config_groups, without ",
                                "which no loader takes it; take the checkpoint's own file"));
    }
    for (const auto& [name, group] : groups->items()) {
      const json* targets = member(&group, "targets");
      if (targets == nullptr || !targets->is_array()) continue;
      for (const json& target : *targets) {
        std::string module = text_of(&target);
        while (module.ends_with('$') || module.ends_with(')')) module.pop_back();
        std::ranges::transform(module, module.begin(),
                               [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
        if (!module.ends_with("attention") && !module.ends_with("attn")) continue;
        throw InvalidInput(
            concat(path_of(kConfig), ": its config group '", export_check::one_line(name),
                   "' quantises the attention modules themselves, with scales of its own; take ",
                   "a checkpoint whose weights alone are quantised"));
      }
    }
  }

  void edit_config(std::string_view scheme) {
    edits_.push_back({std::string(kConfig),
                      with_members(config_text_, place_, {{"kv_cache_scheme", std::string(scheme)}})});
  }

  void plan_configuration() {
    const json* scheme = member(quantization(), "kv_cache_scheme");
    configured_ = scheme != nullptr || method_ == Method::fp8;
    if (scheme != nullptr) check_scheme(*scheme);
    check_algorithm(kConfig, quantization());
    if (method_ == Method::modelopt) plan_modelopt();
    if (method_ == Method::compressed_tensors) {
      check_groups();
      edit_config(kv_scales::compressed_tensors_scheme(by_head()));
    }
  }

  void plan_modelopt() {
    if (is_there(folder_ / kMixedConfig)) {
      const json mixed = export_check::read_object(folder_ / kMixedConfig);
      if (text_of(member(&mixed, "kv_cache_quant_algo")) != "FP8") {
        throw InvalidInput(concat(path_of(kMixedConfig), ": its kv_cache_quant_algo is not \"FP8\", and ",
                                  "TensorRT-LLM stops where it and ", kModelOptConfig,
                                  " differ; set it there first"));
      }
    }
    algorithm_ = member(quantization(), "quant_algo") != nullptr;
    if (is_there(folder_ / kModelOptConfig)) {
      const json file = export_check::read_object(folder_ / kModelOptConfig);
      const json* part = member(&file, "quantization");
      if (part == nullptr || !part->is_object()) {
        throw InvalidInput(
            concat(path_of(kModelOptConfig), ": has no quantization; take the checkpoint's own file"));
      }
      check_algorithm(kModelOptConfig, part);
      if (place_.empty()) {  // loaders read this file alone
        algorithm_ = member(part, "quant_algo") != nullptr;
        configured_ = member(part, "kv_cache_quant_algo") != nullptr;
      }
      edits_.push_back({std::string(kModelOptConfig),
                        with_members(kv_scales::read_object(folder_ / kModelOptConfig), {"quantization"},
                                     {{"kv_cache_quant_algo", "\"FP8\""}})});
    }
    if (!place_.empty()) edit_config(kModelOptScheme);
  }

  /// Passes over scales of a run that was killed before it changed the configuration.
  void check_existing() const {
    for (const TensorView& tensor : checkpoint_.tensors()) {
      const bool ours = tensor.file.filename() == kOverlayShard;
      const bool again = std::ranges::find(scales_, tensor.name, &ScaleTensor::name) != scales_.end();
      if (ours && again && !configured_) continue;
      const auto is_of_cache = [&](std::string_view ending) { return tensor.name.ends_with(ending); };
      constexpr auto kEndings =
          std::to_array<std::string_view>({".k_scale", ".v_scale", ".k_zero_point", ".v_zero_point",
                                           ".k_proj.output_scale", ".v_proj.output_scale"});
      if (!ours && !again && std::ranges::none_of(kEndings, is_of_cache)) continue;
      throw InvalidInput(concat(tensor.file.string(), ": has '", export_check::one_line(tensor.name),
                                "' already, and loaders would take either of two; merge into a checkpoint ",
                                "without scales of its cache, such as a fresh copy"));
    }
  }

  /// The weights of one file go under another name, which an index can list.
  void plan_single() {
    ordered_json metadata = ordered_json::object();
    if (is_there(folder_ / kIndex)) {
      check_index_beside_single();
      const ordered_json old = parse_ordered_json(kv_scales::read_object(folder_ / kIndex), path_of(kIndex));
      if (const auto found = old.find("metadata"); found != old.end() && found->is_object())
        metadata = *found;
    } else {
      first_index_ = kv_scales::index_of(checkpoint_, kSingle, {}, metadata);
    }
    std::error_code error;
    const fs::file_status there = fs::symlink_status(folder_ / kOverlaySingle, error);
    if (fs::exists(there) && !fs::equivalent(folder_ / kSingle, folder_ / kOverlaySingle, error)) {
      throw InvalidInput(concat(path_of(kOverlaySingle), ": is there beside ", kSingle,
                                ", which would be called so; remove the one that is left over"));
    }
    index_ = kv_scales::index_of(checkpoint_, kOverlaySingle, scales_, std::move(metadata));
  }

  void plan_index() {
    single_ = kv_scales::is_single(checkpoint_);
    if (single_) {
      plan_single();
      return;
    }
    std::uint64_t bytes = 0;
    for (const TensorView& tensor : checkpoint_.tensors())
      if (tensor.file.filename() != kOverlayShard) bytes += tensor.data.size();
    std::vector<JsonMember> members;
    for (const ScaleTensor& scale : scales_) {
      bytes += scale.values.size() * sizeof(float);
      members.push_back({scale.name, concat('"', kOverlayShard, '"')});
    }
    const std::string text = kv_scales::read_object(folder_ / kIndex);
    const json index = parse_json(text, path_of(kIndex));
    const json* metadata = member(&index, "metadata");
    const std::string size = concat(bytes);
    const bool has_metadata = metadata != nullptr && metadata->is_object();
    const std::vector<std::string> place(has_metadata ? 1 : 0, "metadata");
    const JsonMember total = has_metadata ? JsonMember{"total_size", size}
                                          : JsonMember{"metadata", concat(R"({"total_size": )", size, "}")};
    index_ = with_members(text, place, {total});
    index_ = with_members(index_, {"weight_map"}, members);
  }

  /// transformers reads the one file there, others what the index names: only the same weights may be meant.
  void check_index_beside_single() const {
    const json index = export_check::read_object(folder_ / kIndex);
    const json* map = member(&index, "weight_map");
    const auto is_known = [](const json& shard) {
      const std::string file = text_of(&shard);
      return file == kSingle || file == kOverlaySingle || file == kOverlayShard;
    };
    if (map != nullptr && map->is_object() && std::ranges::all_of(*map, is_known)) return;
    throw InvalidInput(concat(path_of(kIndex), ": lies beside ", kSingle, " and names other files, so which ",
                              "weights are meant is not certain; remove those that are left over"));
  }

  std::vector<fs::path> write() const {
    std::vector<fs::path> files;
    const auto write_text = [&](std::string_view name, const std::string& text) {
      base::write_file_atomically(folder_ / name, text);
      if (std::ranges::find(files, folder_ / name) == files.end()) files.push_back(folder_ / name);
    };
    // Without an index, vLLM reads all safetensors that lie there: first comes one that lists the weights.
    if (!first_index_.empty()) write_text(kIndex, first_index_);
    kv_scales::write_shard(folder_ / kOverlayShard, scales_);
    files.insert(files.begin(), folder_ / kOverlayShard);
    if (single_) add_second_name();
    write_text(kIndex, index_);
    if (single_) {
      remove_first_name();
      files.push_back(folder_ / kOverlaySingle);
    }
    for (const Edit& edit : edits_) write_text(edit.name, edit.text);
    return files;
  }

  /// Both names of the same file, so that no moment is without one that a loader finds.
  void add_second_name() const {
    std::error_code error;
    if (fs::exists(fs::symlink_status(folder_ / kOverlaySingle, error))) return;
    if (fs::is_symlink(folder_ / kSingle, error)) {
      fs::copy_symlink(folder_ / kSingle, folder_ / kOverlaySingle, error);
    } else {
      fs::create_hard_link(folder_ / kSingle, folder_ / kOverlaySingle, error);
    }
    if (!error) return;
    throw base::SystemError(concat("cannot link ", path_of(kOverlaySingle), " to ", kSingle, ": ",
                                   error.message(), "; merge on a file system that has links, or save the ",
                                   "checkpoint in several shards"));
  }

  /// The weights stay under the second name: a rename, in two steps.
  void remove_first_name() const {
    std::error_code error;
    if (fs::equivalent(folder_ / kSingle, folder_ / kOverlaySingle, error) && !error)
      fs::remove(folder_ / kSingle, error);
    if (!error) return;
    throw base::SystemError(concat("cannot rename ", path_of(kSingle), " to ", kOverlaySingle, ": ",
                                   error.message(), "; make the folder writable and merge again"));
  }

  [[nodiscard]] ExportReport report_of(const std::vector<LayerScales>& layers) const {
    const std::string folder = shell_word(folder_.string());
    ExportReport report;
    if (method_ == Method::compressed_tensors) {
      report = kv_scales::compressed_tensors_report(codebook_, layers, by_head(), folder_);
    } else {
      report.serve = concat("vllm serve ", folder, " --kv-cache-dtype fp8\npython -m sglang.launch_server ",
                            "--model-path ", folder, " --kv-cache-dtype fp8_e4m3");
      report.needs = "vLLM 0.33 or SGLang 0.5.23, whose code was read; older ones were not looked at";
      report.beware =
          "'Using KV cache scaling factor 1.0' (vLLM) and 'is not loaded' or 'not found in params_dict' mean "
          "that "
          "scales are lost";
      report.warnings = scale_warnings(codebook_, layers);
    }
    if (method_ == Method::fp8) {
      report.warnings.emplace_back(
          "nothing in a checkpoint of quant_method fp8 says that the cache is FP8: without --kv-cache-dtype "
          "the scales are not used, and transformers never uses them");
    }
    if (method_ == Method::modelopt) {
      report.warnings.emplace_back("TensorRT-LLM runs an FP8 cache at 1.0, whatever the file says");
      if (!algorithm_)
        report.warnings.emplace_back(
            "the checkpoint names no quant_algo of its weights: vLLM 0.33 and SGLang 0.5.23 refuse it");
    }
    if (single_)
      report.warnings.push_back(concat(kSingle, " is called ", kOverlaySingle,
                                       " now: beside a file of the former name transformers reads no index"));
    return report;
  }

  const Codebook& codebook_;
  const ScaleChoice& choice_;
  fs::path folder_;
  Checkpoint checkpoint_;
  std::string config_text_;
  json config_;
  std::vector<std::string> place_;  ///< keys of the quantisation in config.json; empty: not there
  Method method_ = Method::compressed_tensors;
  bool configured_ = false;  ///< what is written last says already that the cache is FP8
  bool algorithm_ = true;    ///< ModelOpt's of the weights is named
  bool single_ = false;
  std::vector<ScaleTensor> scales_;
  std::string first_index_, index_;
  std::vector<Edit> edits_;  ///< in the order of writing
};

}  // namespace

ExportReport merge_scales(const Codebook& codebook, const ScaleChoice& choice, const fs::path& folder,
                          std::string_view format) {
  return Merge(codebook, choice, folder).run(format);
}

}  // namespace kvcal::formats
