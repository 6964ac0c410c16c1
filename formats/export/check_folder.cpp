// The check of a model's folder with scales of its cache.
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "formats/dtype.h"
#include "formats/internal/export_check.h"
#include "formats/internal/kv_scales.h"
#include "formats/safetensors.h"

namespace kvcal::formats::export_check {
namespace {

using base::concat;
using base::InvalidInput;
using kv_scales::kConfig;
using kv_scales::kIndex;
using kv_scales::kSingle;
using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kModelOptConfig = "hf_quant_config.json";
constexpr std::size_t kMaxNumbers = 1'000'000;  // of one scale tensor: far above any model's channels

/// Where a scale belongs by its tensor's name.
struct ScaleName {
  int layer = -1;  ///< -1: the name says no layer of a language model
  bool value = false;
  std::string before, after;  ///< "model.layers." and ".self_attn.k_scale"
};

/// Empty for a tensor that is no scale of a cache.
std::optional<ScaleName> parse_name(const std::string& name) {
  ScaleName parsed;
  parsed.value = name.ends_with(".v_scale");
  if (!parsed.value && !name.ends_with(".k_scale")) return std::nullopt;
  for (const std::string_view before :
       {"model.layers.", "model.language_model.layers.", "language_model.model.layers."}) {
    if (!name.starts_with(before)) continue;
    const char* digits = name.data() + before.size();
    const auto [end, error] = std::from_chars(digits, name.data() + name.size(), parsed.layer);
    if (error != std::errc() || *digits == '-' || *end != '.') {
      parsed.layer = -1;
      continue;
    }
    parsed.before = before;
    parsed.after.assign(end, name.data() + name.size());
  }
  return parsed;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) text += concat(text.size() == 1 ? "" : ", ", extent);
  return text + "]";
}

class FolderCheck {
 public:
  FolderCheck(const fs::path& folder, const Codebook* codebook) : folder_(folder), codebook_(codebook) {}

  ExportCheck run() {
    if (!is_there(folder_ / kConfig)) {
      throw InvalidInput(concat(folder_.string(), ": has no ", kConfig,
                                "; name a model's folder with scales, or a scale file of onnx-genai (JSON)"));
    }
    read_config();
    open_files();
    find_scales();
    if (found_.empty() && lost_.empty() && !configured_) {
      throw InvalidInput(concat(folder_.string(), ": has no scales of a cache, neither as tensors nor in ",
                                kConfig, " or ", kModelOptConfig,
                                "; export them with kvcal export --format compressed-tensors"));
    }
    if (!configured_) {
      add(kConfig, concat(check_.format == "none" ? "has no quantization_config with a kv_cache_scheme"
                                                  : "its quantization_config has no FP8 kv_cache_scheme",
                          ": loaders ignore the scales"));
    }
    for (int layer = 0; layer < layers_; ++layer)
      if (caches(layer)) check_layer(layer);
    check_strangers();
    if (codebook_ != nullptr) compare_sizes();
    return std::move(check_);
  }

 private:
  using Place = std::pair<int, bool>;  ///< layer, of values

  void add(const std::string& name, const std::string& problem) { add_finding(check_, name, problem); }

  [[nodiscard]] bool is_compressed_tensors() const { return check_.format == "compressed-tensors"; }

  void read_config() {
    config_ = read_object(folder_ / kConfig);
    const json* text = member(&config_, "text_config");
    const auto find = [&](const char* key) {
      const json* found = member(&config_, key);
      return found != nullptr ? found : member(text, key);
    };
    const std::optional<int> layers = count_of(find("num_hidden_layers"), kMaxLayers);
    if (!layers || *layers == 0) {
      throw InvalidInput(concat((folder_ / kConfig).string(), ": does not say how many layers the model has ",
                                "(num_hidden_layers, 1 to ", kMaxLayers, "); take the model's own file"));
    }
    layers_ = *layers;
    layer_types_ = find("layer_types");
    const json* heads = find("num_key_value_heads");
    kv_heads_ = count_of(heads != nullptr ? heads : find("num_attention_heads"), 1'000'000).value_or(0);
    const json* quantization = find("quantization_config");
    read_quantization(quantization != nullptr ? quantization : find("compression_config"));
  }

  void read_quantization(const json* quantization) {
    check_.format = quantization == nullptr ? "none" : text_of(member(quantization, "quant_method"));
    check_.format = check_.format.empty() ? "unnamed" : one_line(check_.format);
    const json* scheme = member(quantization, "kv_cache_scheme");
    if (is_compressed_tensors()) {
      if (member(quantization, "config_groups") == nullptr)
        add(kConfig, "its quantization_config has no config_groups: transformers refuses to load the model");
      configured_ = scheme != nullptr;
      if (scheme != nullptr) read_scheme(*scheme);
      return;
    }
    if (check_.format == "fp8") configured_ = true;  // vLLM is told of the cache on its command line
    if (is_there(folder_ / kModelOptConfig) && (check_.format == "none" || check_.format == "modelopt")) {
      check_.format = "modelopt";
      const json file = read_object(folder_ / kModelOptConfig);
      check_algorithm(kModelOptConfig, member(member(&file, "quantization"), "kv_cache_quant_algo"));
      configured_ = true;
    } else if (check_.format == "modelopt") {
      const json* algorithm = member(quantization, "kv_cache_quant_algo");
      configured_ = scheme != nullptr || algorithm != nullptr;
      if (configured_ && scheme == nullptr) check_algorithm(kConfig, algorithm);
    }
    if (check_.format == "modelopt" && scheme != nullptr) check_number_format(*scheme);
  }

  void check_algorithm(const char* file, const json* algorithm) {
    if (text_of(algorithm) != "FP8")
      add(file, concat("kv_cache_quant_algo is ", algorithm == nullptr ? "null" : algorithm->dump(),
                       ", not \"FP8\": loaders ignore the scales"));
  }

  void check_number_format(const json& scheme) {
    if (!is_number(member(&scheme, "num_bits"), 8) || text_of(member(&scheme, "type")) != "float")
      add(kConfig, "its kv_cache_scheme is not of 8 bit floats: the scales are not made for it");
    if (!is_bool(member(&scheme, "dynamic"), false))
      add(kConfig, "its kv_cache_scheme is not static (dynamic: false): loaders ignore the scales");
  }

  void read_scheme(const json& scheme) {
    check_number_format(scheme);
    if (!is_bool(member(&scheme, "symmetric"), true))
      add(kConfig, "its kv_cache_scheme is not symmetric (symmetric: true): vLLM refuses the model");
    const std::string strategy = text_of(member(&scheme, "strategy"));
    by_head_ = strategy == "attn_head";
    if (!by_head_ && strategy != "tensor")
      add(kConfig, "the strategy of its kv_cache_scheme is neither tensor nor attn_head");
  }

  /// All of the folder, and the index where there is one.
  void open_files() {
    std::error_code error;
    std::set<fs::path> paths;
    for (fs::directory_iterator it(folder_, error), end; !error && it != end; it.increment(error))
      if (it->path().extension() == ".safetensors") paths.insert(it->path());
    if (error)
      throw base::SystemError(concat("cannot read the folder ", folder_.string(), ": ", error.message()));
    for (const fs::path& path : paths) {
      const std::string name = path.filename().string();
      if (is_there(path)) {
        files_.emplace(name, SafetensorsFile(path));
      } else {
        add(name, "is a link to a file that is not there: loaders stop");
      }
    }
    if (is_there(folder_ / kIndex)) read_index();
  }

  void read_index() {
    const json index = read_object(folder_ / kIndex);
    const json* map = member(&index, "weight_map");
    if (map == nullptr || !map->is_object()) {
      throw InvalidInput(concat((folder_ / kIndex).string(),
                                ": no weight_map that names the shard of each tensor; export it anew"));
    }
    index_.emplace();
    std::set<std::string> missing;
    for (const auto& [tensor, shard] : map->items()) {
      const std::string file = text_of(&shard);
      index_->emplace(tensor, file);
      std::error_code error;
      if (!files_.contains(file) && missing.insert(file).second) {
        if (file.empty() || file.find('/') != std::string::npos || !fs::is_symlink(folder_ / file, error))
          add(file, concat("is not there, but ", kIndex, " names it: loaders stop"));
      }
    }
  }

  /// Only those that the index shows, where there is one.
  void find_scales() {
    bool beside_single = false;
    for (const auto& [file, content] : files_) {
      for (const TensorView& tensor : content.tensors()) {
        const std::optional<ScaleName> name = parse_name(tensor.name);
        if (!name) continue;
        if (!before_known_ && name->layer >= 0) {
          before_ = name->before;
          before_known_ = true;
        }
        if (is_listed(tensor.name, file, *name)) {
          found_[{name->layer, name->value}].push_back(&tensor);
          beside_single = beside_single || file != kSingle;
        }
      }
    }
    if (index_ && beside_single && files_.contains(kSingle))
      add(kSingle,
          concat("lies beside ", kIndex, ": transformers reads it alone, and no scales of other files"));
    if (index_) find_listed_in_vain();
  }

  bool is_listed(const std::string& tensor, const std::string& file, const ScaleName& name) {
    if (!index_) return true;
    const auto listed = index_->find(tensor);
    if (listed != index_->end() && listed->second == file) return true;
    lost_.insert({name.layer, name.value});
    add(tensor, listed == index_->end()
                    ? concat("lies in ", file, ", but ", kIndex, " does not list it: ", what_instead())
                    : concat("lies in ", file, ", but ", kIndex, " says ", listed->second));
    return false;
  }

  void find_listed_in_vain() {
    for (const auto& [tensor, file] : *index_) {
      const std::optional<ScaleName> name = parse_name(tensor);
      const auto content = files_.find(file);
      if (!name || (content != files_.end() && content->second.find(tensor) != nullptr)) continue;
      if (lost_.insert({name->layer, name->value}).second)
        add(tensor,
            concat("is not in ", file, ", where ", kIndex, " says it is: loaders stop, or ", what_instead()));
    }
  }

  /// What runs where a scale is missing.
  [[nodiscard]] std::string what_instead() const {
    if (is_compressed_tensors()) return "vLLM takes 1.0 and logs nothing, transformers uninitialised memory";
    return "loaders take 1.0, or the scale of keys for values";
  }

  /// Layers of linear attention, convolutions and state spaces have no cache of keys and values.
  [[nodiscard]] bool caches(int layer) const {
    const auto at = static_cast<std::size_t>(layer);
    if (layer_types_ == nullptr || !layer_types_->is_array() || layer_types_->size() <= at) return true;
    const std::string type = text_of(&(*layer_types_)[at]);
    return type.empty() || (type.ends_with("attention") && !type.starts_with("linear"));
  }

  void check_layer(int layer) {
    for (const bool value : {false, true}) {
      const auto found = found_.find({layer, value});
      if (found != found_.end()) {
        for (const TensorView* tensor : found->second) check_scale(*tensor, layer, value);
        if (found->second.size() > 1)
          add(found->second.front()->name,
              concat("is there again as ", found->second.back()->name, " in ",
                     found->second.back()->file.filename().string(), ": which one is used is not certain"));
      } else if (!lost_.contains({layer, value})) {
        const char letter = value ? 'v' : 'k';
        const std::string projection = check_.format == "modelopt" ? concat(letter, "_proj.") : "";
        add(concat(before_, layer, ".self_attn.", projection, letter, "_scale"),
            concat("is missing: ", what_instead()));
      }
    }
  }

  void check_scale(const TensorView& tensor, int layer, bool value) {
    check_shape(tensor);
    const std::string after = parse_name(tensor.name)->after;
    if (is_compressed_tensors() && after != ".self_attn.k_scale" && after != ".self_attn.v_scale")
      add(tensor.name, "is not named as transformers expects it (.self_attn.k_scale, .self_attn.v_scale)");
    if (!is_weight_dtype(tensor.dtype)) {
      add(tensor.name, concat("is of type ", dtype_name(tensor.dtype), ", where F32 is expected"));
      return;
    }
    const std::size_t count = tensor.data.size() * 8 / static_cast<std::size_t>(dtype_bits(tensor.dtype));
    if (count > kMaxNumbers) return;  // its shape was named
    Scales scales{tensor.name, layer, value, std::vector<float>(count)};
    copy_to_float(tensor.dtype, tensor.data, scales.numbers, tensor.name);
    check_numbers(scales, check_);
    if (codebook_ != nullptr && count > 0)
      compare(scales, *codebook_, count == 1 ? ScaleScope::tensor : ScaleScope::head, ScaledType::fp8,
              check_);
  }

  void check_shape(const TensorView& tensor) {
    const std::vector<std::int64_t>& shape = tensor.shape;
    const bool heads = by_head_ && shape.size() == 3 && shape[1] == 1 && shape[2] == 1 &&
                       (kv_heads_ == 0 ? shape[0] > 0 : shape[0] == kv_heads_);
    const bool one =
        !by_head_ && (shape == std::vector<std::int64_t>{1} || (shape.empty() && !is_compressed_tensors()));
    if (heads || one) return;
    const std::string expected = !by_head_        ? "[1]"
                                 : kv_heads_ == 0 ? "[kv_heads, 1, 1]"
                                                  : concat("[", kv_heads_, ", 1, 1]");
    add(tensor.name, concat("has the shape ", shape_text(shape), ", where ", expected, " is expected"));
  }

  /// Scales that no layer of the model takes.
  void check_strangers() {
    for (const auto& [place, tensors] : found_) {
      const int layer = place.first;
      if (layer >= 0 && layer < layers_ && caches(layer)) continue;
      for (const TensorView* tensor : tensors) {
        add(tensor->name,
            layer < 0          ? std::string("is not named as a layer's scale is (model.layers.N.self_attn.)")
            : layer >= layers_ ? concat("is of a layer that the model of ",
                                        counted(static_cast<std::size_t>(layers_), "layer"), " does not have")
                               : concat("is of a layer that caches no keys and values"));
      }
    }
  }

  void compare_sizes() {
    const ModelInfo& model = codebook_->model;
    if (model.num_layers != layers_)
      add(kConfig, concat("says ", counted(static_cast<std::size_t>(layers_), "layer"), ", the codebook ",
                          model.num_layers, ": of another model"));
    if (kv_heads_ != 0 && model.num_kv_heads != kv_heads_)
      add(kConfig, concat("says ", counted(static_cast<std::size_t>(kv_heads_), "head"),
                          " of keys and values, the codebook ", model.num_kv_heads, ": of another model"));
  }

  fs::path folder_;
  const Codebook* codebook_;
  ExportCheck check_;
  json config_;
  const json* layer_types_ = nullptr;
  int layers_ = 0, kv_heads_ = 0;  ///< heads 0: not known
  bool configured_ = false;        ///< the loader is told that the cache is FP8
  bool by_head_ = false;
  std::map<std::string, SafetensorsFile> files_;             ///< by name
  std::optional<std::map<std::string, std::string>> index_;  ///< tensor -> file
  std::map<Place, std::vector<const TensorView*>> found_;    ///< what a loader sees
  std::set<Place> lost_;                                     ///< what it does not see, and why was said
  std::string before_ = "model.layers.";
  bool before_known_ = false;
};

}  // namespace

ExportCheck check_folder(const fs::path& folder, const Codebook* codebook) {
  return FolderCheck(folder, codebook).run();
}

}  // namespace kvcal::formats::export_check
