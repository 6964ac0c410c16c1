#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "base/error.h"
#include "formats/codebook.h"
#include "formats/internal/codebook_rules.h"
#include "formats/internal/hdf5_tree.h"
#include "formats/internal/json.h"
#include "formats/json.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;

/// Takes a codebook from a tree. What is missing or of the wrong type is named by its path; sizes and values
/// are for validate_codebook().
class Decoder {
 public:
  Decoder(const std::string& file, const Hdf5Tree& tree) : file_(file), tree_(tree) {}

  /// Is it a finished codebook, of a version that we know?
  Codebook decode_header() const {
    if (!tree_.values.contains("/@format"))
      fail("/@format", "missing: an HDF5 file, but not a codebook of kvcal");
    const std::string format = text("/", "format");
    if (format != kCodebookFormat)
      fail("/@format", concat("the format is '", format, "'; expected '", kCodebookFormat, "'"));
    Codebook codebook;
    codebook.schema_major = small("/", "schema_major");
    if (codebook.schema_major > kCodebookSchemaMajor) {
      fail("/@schema_major", concat("schema ", codebook.schema_major, " is newer than ", kCodebookSchemaMajor,
                                    ", the newest that this version of kvcal reads; update kvcal"));
    }
    if (codebook.schema_major != kCodebookSchemaMajor)
      fail("/@schema_major", concat("there is no schema ", codebook.schema_major));
    codebook.schema_minor = small("/", "schema_minor");
    if (codebook.schema_minor < 0)
      fail("/@schema_minor", concat("there is no schema 1.", codebook.schema_minor));
    if (!tree_.values.contains("/@complete") || integer("/", "complete") != 1) {
      fail("/@complete",
           "the file is not complete: its writing was interrupted; run the command that made it again");
    }
    codebook.created_by = text("/", "created_by");
    codebook.content_sha256 = text("/", "content_sha256");
    return codebook;
  }

  void decode_body(Codebook& codebook) const {
    decode_model(codebook.model);
    decode_calibration(codebook.calibration);
    group("/layers");
    for (const std::string& name : children("/layers")) {
      const std::optional<int> index = number(name);
      // Another name may be of a newer minor version; what looks like a layer must be one.
      if (index && layer_path(*index) == "/layers/" + name) codebook.layers.push_back(decode_layer(*index));
    }
    if (tree_.groups.contains(kRecipe)) codebook.recipe = decode_recipe();
  }

 private:
  [[noreturn]] void fail(std::string_view path, std::string_view what) const {
    throw InvalidInput(concat(file_, ": ", path, ": ", what));
  }

  void group(const std::string& path) const {
    if (!tree_.groups.contains(path)) fail(path, "the group is missing");
  }

  /// The names of the groups directly in a group, in byte order.
  std::vector<std::string> children(const std::string& parent) const {
    const std::string prefix = parent + "/";
    std::vector<std::string> names;
    for (auto it = tree_.groups.lower_bound(prefix); it != tree_.groups.end() && it->starts_with(prefix);
         ++it) {
      if (it->find('/', prefix.size()) == std::string::npos) names.push_back(it->substr(prefix.size()));
    }
    return names;
  }

  static std::optional<int> number(std::string_view digits) {
    int value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc{} && end == digits.data() + digits.size() && value >= 0 ? std::optional(value)
                                                                                      : std::nullopt;
  }

  const Hdf5Value& attribute(const std::string& object, std::string_view name) const {
    const std::string key = attribute_key(object, name);
    const auto found = tree_.values.find(key);
    if (found == tree_.values.end()) fail(key, "the attribute is missing");
    if (!found->second.shape.empty() && found->second.shape != std::vector<std::int64_t>{1})
      fail(key, "is an array; expected one value");
    return found->second;
  }

  std::string text(const std::string& object, std::string_view name) const {
    const Hdf5Value& value = attribute(object, name);
    if (value.type != "string")
      fail(attribute_key(object, name), concat("has the type ", value.type, "; expected text"));
    std::string result(value.text());
    if (!value.shape.empty()) result.pop_back();  // the zero byte after an element
    return result;
  }

  std::int64_t integer(const std::string& object, std::string_view name) const {
    const Hdf5Value& value = attribute(object, name);
    const bool is_signed = value.type.starts_with("int");
    if (!is_signed && !value.type.starts_with("uint")) {
      fail(attribute_key(object, name), concat("has the type ", value.type, "; expected an integer"));
    }
    std::uint64_t bits = 0;
    std::memcpy(&bits, value.data.data(), value.data.size());
    const int unused = 64 - 8 * static_cast<int>(value.data.size());
    if (is_signed) return static_cast<std::int64_t>(bits << unused) >> unused;
    if (!std::in_range<std::int64_t>(bits))
      fail(attribute_key(object, name), concat(bits, " is out of range"));
    return static_cast<std::int64_t>(bits);
  }

  int small(const std::string& object, std::string_view name) const {
    const std::int64_t value = integer(object, name);
    if (!std::in_range<int>(value)) fail(attribute_key(object, name), concat(value, " is out of range"));
    return static_cast<int>(value);
  }

  double real(const std::string& object, std::string_view name) const {
    const Hdf5Value& value = attribute(object, name);
    if (value.type != "float64")
      fail(attribute_key(object, name), concat("has the type ", value.type, "; expected float64"));
    double result = 0;
    std::memcpy(&result, value.data.data(), sizeof(result));
    return result;
  }

  /// Attributes that came later than the first files: one may lack them.
  double real_or(const std::string& object, std::string_view name, double otherwise) const {
    return tree_.values.contains(attribute_key(object, name)) ? real(object, name) : otherwise;
  }

  const Hdf5Value& dataset(const std::string& path, std::size_t dimensions) const {
    const auto found = tree_.values.find(path);
    if (found == tree_.values.end()) fail(path, "the dataset is missing");
    const Hdf5Value& value = found->second;
    if (value.type != "float32") fail(path, concat("has the type ", value.type, "; expected float32"));
    if (value.shape.size() != dimensions)
      fail(path, concat("has ", value.shape.size(), " dimensions; expected ", dimensions));
    return value;
  }

  std::vector<float> floats(const std::string& path) const { return numbers(dataset(path, 1)); }

  std::vector<float> matrix(const std::string& path, std::size_t columns) const {
    const Hdf5Value& value = dataset(path, 2);
    if (value.shape[1] != static_cast<std::int64_t>(columns))
      fail(path, concat("has ", value.shape[1], " columns; expected ", columns));
    return numbers(value);
  }

  static std::vector<float> numbers(const Hdf5Value& value) {
    std::vector<float> result(value.data.size() / sizeof(float));
    if (!result.empty()) std::memcpy(result.data(), value.data.data(), value.data.size());
    return result;
  }

  void decode_model(ModelInfo& model) const {
    group("/model");
    model.name = text("/model", "name");
    model.architecture = text("/model", "architecture");
    model.config_sha256 = text("/model", "config_sha256");
    model.weights_sha256 = text("/model", "weights_sha256");
    model.num_layers = small("/model", "num_layers");
    model.num_attention_heads = small("/model", "num_attention_heads");
    model.num_kv_heads = small("/model", "num_kv_heads");
    model.head_dim = small("/model", "head_dim");
    model.rope_json = text("/model", "rope");
  }

  void decode_calibration(CalibrationInfo& calibration) const {
    const std::string path = "/calibration";
    group(path);
    if (tree_.values.contains(attribute_key(path, "revision")))
      calibration.revision = small(path, "revision");
    calibration.options_json = text(path, "options");
    calibration.texts = decode_texts(text(path, "texts"));
    calibration.tokens_sha256 = text(path, "tokens_sha256");
    calibration.samples = integer(path, "samples");
    calibration.seqlen = integer(path, "seqlen");
    calibration.tokens = integer(path, "tokens");
    calibration.bos = text(path, "bos");
    calibration.sinks = small(path, "sinks");
    calibration.seed = integer(path, "seed");
    calibration.dtype = text(path, "dtype");
    calibration.device = text(path, "device");
    calibration.value_scope = text(path, "value_scope");
    calibration.sensitivity = text(path, "sensitivity");
    calibration.fisher_scale = text(path, "fisher_scale");
    calibration.loss = real(path, "loss");
  }

  std::vector<TextInfo> decode_texts(const std::string& json) const {
    const nlohmann::json parsed = parse_json(json, concat(file_, ": /calibration@texts"));
    if (!parsed.is_array()) fail("/calibration@texts", "expected a JSON list");
    std::vector<TextInfo> texts;
    for (const nlohmann::json& entry : parsed) {
      const auto field = [&](const char* name) {
        const auto found = entry.is_object() ? entry.find(name) : entry.end();
        if (found == entry.end() || !found->is_string())
          fail("/calibration@texts", concat("an entry has no text '", name, "'"));
        return found->get<std::string>();
      };
      texts.push_back({field("name"), field("sha256")});
    }
    return texts;
  }

  Recipe decode_recipe() const {
    Recipe recipe;
    recipe.options_json = text(kRecipe, "options");
    recipe.source = text(kRecipe, "source");
    recipe.context = integer(kRecipe, "context");
    recipe.bytes = integer(kRecipe, "bytes");
    recipe.bits_per_value = real(kRecipe, "bits_per_value");
    recipe.divergence = real(kRecipe, "divergence");
    recipe.curve = matrix(concat(kRecipe, "/curve"), kCurveColumns);
    for (const std::string& name : children(kRecipe)) {
      const std::optional<int> layer = number(name);
      if (!layer || recipe_path(*layer) != concat(kRecipe, "/", name)) continue;
      for (const std::string& tensor : children(recipe_path(*layer))) {
        TensorRecipe one{.layer = *layer, .tensor = tensor};
        const std::string path = recipe_path(one);
        one.bits = small(path, "bits");
        one.fraction = real(path, "fraction");
        one.divergence = real(path, "divergence");
        recipe.tensors.push_back(std::move(one));
      }
    }
    sort_recipe(recipe.tensors);
    return recipe;
  }

  LayerCodebook decode_layer(int index) const {
    const std::string path = layer_path(index);
    LayerCodebook layer;
    layer.index = index;
    std::vector<CachedTensor> described = decode_descriptions(path);
    layer.rope_json = text(path, "rope");
    layer.window = integer(path, "window");
    for (CachedTensor& tensor : described) layer.tensors.push_back(decode_tensor(path, std::move(tensor)));
    return layer;
  }

  bool has(const std::string& object, std::string_view name) const {
    return tree_.values.contains(attribute_key(object, name));
  }

  /// What the layer caches, by tensor_rank(). The sizes of keys and values stand at the layer; those of any
  /// other tensor, and of keys and values that do not share their heads, at the tensor.
  std::vector<CachedTensor> decode_descriptions(const std::string& path) const {
    std::vector<CachedTensor> tensors;
    const bool has_kv_heads = has(path, "kv_heads") || has(path, "key_dim") || has(path, "value_dim");
    if (has_kv_heads) {
      const int heads = small(path, "kv_heads");
      tensors.push_back({"key", heads, small(path, "key_dim"), ThresholdScope::channel});
      tensors.push_back({"value", heads, small(path, "value_dim"), ThresholdScope::token});
    }
    for (const std::string& name : children(path)) {
      if (has_kv_heads && (name == "key" || name == "value")) continue;
      // A group without it may be of a newer minor version.
      if (const std::string child = concat(path, "/", name); has(child, "heads"))
        tensors.push_back({name, small(child, "heads"), small(child, "dim"), decode_scope(child)});
    }
    // No tensor at all: what every layer had before there were others is what is missing.
    if (tensors.empty()) (void)attribute(path, "kv_heads");
    std::ranges::sort(tensors, {}, tensor_rank);
    return tensors;
  }

  ThresholdScope decode_scope(const std::string& path) const {
    const std::string name = text(path, "thresholds");
    for (const ThresholdScope scope : {ThresholdScope::channel, ThresholdScope::token}) {
      if (threshold_scope_name(scope) == name) return scope;
    }
    fail(attribute_key(path, "thresholds"), concat("is '", name, "'; expected 'channel' or 'token'"));
  }

  TensorCodebook decode_tensor(const std::string& layer, CachedTensor described) const {
    const std::string path = concat(layer, "/", described.name);
    group(path);
    TensorCodebook tensor;
    tensor.tensor = std::move(described);
    const bool thresholds = tensor.tensor.thresholds == ThresholdScope::channel;
    tensor.fisher_channel = floats(path + "/fisher_channel");
    tensor.halves = {real_or(path, "threshold_shift", 0), real_or(path, "datatype_excess", 0)};
    tensor.outliers = decode_sets(path, thresholds);
    tensor.with_sinks = decode_sets(path + kWithSinks, thresholds);
    // With sizes of its own it is another tensor.
    if (!has(path + kRotated, "heads")) tensor.rotated = decode_sets(path + kRotated, thresholds);
    tensor.rotation_block = decode_rotation(path);
    if (!tree_.groups.contains(path + kMagnitudes)) return tensor;
    tensor.magnitudes.emplace();
    tensor.magnitudes->cached = decode_magnitudes(path);
    if (tree_.groups.contains(path + kRotated + kMagnitudes))
      tensor.magnitudes->rotated = decode_magnitudes(path + kRotated);
    if (tree_.groups.contains(path + kEnvelope + kMagnitudes))
      tensor.magnitudes->envelope = decode_magnitudes(path + kEnvelope);
    return tensor;
  }

  int decode_rotation(const std::string& path) const {
    if (!has(path, "rotation")) return 0;
    const std::string name = text(path, "rotation");
    if (name != kHadamard) {
      fail(attribute_key(path, "rotation"),
           concat("is '", name, "', which this version of kvcal does not know, only '", kHadamard,
                  "'; update kvcal"));
    }
    return small(path, "rotation_block");
  }

  Magnitudes decode_magnitudes(const std::string& tensor) const {
    const auto decode = [&](const char* name) {
      const std::string path = concat(tensor, kMagnitudes, "/", name);
      return MagnitudeGroup{matrix(path + "_quantiles", kMagnitudeLevels.size()),
                            matrix(path + "_best", kScaledTypes)};
    };
    return {decode("channel"), decode("head"), decode("tensor")};
  }

  std::vector<OutlierSet> decode_sets(const std::string& path, bool thresholds) const {
    std::vector<OutlierSet> sets;
    for (const std::string& name : children(path)) {
      if (name.starts_with("outliers_")) sets.push_back(decode_outliers(path, name, thresholds));
    }
    std::ranges::sort(sets, {}, &OutlierSet::fraction);
    return sets;
  }

  OutlierSet decode_outliers(const std::string& parent, const std::string& name, bool thresholds) const {
    const std::string path = concat(parent, "/", name);
    const std::string_view digits = std::string_view(name).substr(name.find('_') + 1);
    OutlierSet set;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), set.fraction);
    if (error != std::errc{} || end != digits.data() + digits.size())
      fail(path, "the name holds no outlier fraction");
    set.fraction = real_or(path, "fraction", set.fraction);
    if (outlier_group_name(set.fraction) != name)
      fail(path, concat("the name does not fit its fraction ", set.fraction));
    if (thresholds) {
      set.lower = floats(path + "/lower");
      set.upper = floats(path + "/upper");
    }
    if (tree_.values.contains(path + "/histogram")) set.histogram = floats(path + "/histogram");
    for (const std::string& child : children(path)) {
      if (!child.starts_with("nuq")) continue;
      const std::optional<int> bits = number(std::string_view(child).substr(3));
      if (bits && concat("nuq", *bits) == child) set.datatypes.push_back(decode_datatype(path, *bits));
    }
    std::ranges::sort(set.datatypes, {}, &Datatype::bits);
    return set;
  }

  Datatype decode_datatype(const std::string& parent, int bits) const {
    const std::string group = concat(parent, "/nuq", bits);
    const std::string path = group + "/centroids";
    Datatype datatype;
    datatype.bits = bits;
    datatype.centroids = floats(path);
    datatype.qnorm_scale = real(path, "qnorm_scale");
    datatype.qnorm_offset = real(path, "qnorm_offset");
    datatype.objective = real(path, "objective");
    datatype.lower_bound = real(path, "lower_bound");
    if (tree_.values.contains(attribute_key(path, "weights"))) datatype.weights = text(path, "weights");
    // One without the other is missing.
    if (tree_.values.contains(group + "/scale") || tree_.values.contains(group + "/zero")) {
      datatype.scale = floats(group + "/scale");
      datatype.zero = floats(group + "/zero");
      if (tree_.values.contains(group + "/histogram")) datatype.histogram = floats(group + "/histogram");
    }
    return datatype;
  }

  const std::string& file_;
  const Hdf5Tree& tree_;
};

}  // namespace

Codebook codebook_of(const Hdf5Tree& tree, const std::string& file) {
  const Decoder decoder(file, tree);
  Codebook codebook = decoder.decode_header();
  decoder.decode_body(codebook);
  // The rules first: they say what is wrong, where the hash only says that something is.
  validate_codebook(codebook, file);
  if (const std::string actual = content_sha256(tree); actual != codebook.content_sha256) {
    throw InvalidInput(concat(file, ": /@content_sha256: the content does not match it (",
                              codebook.content_sha256, " is stored, ", actual,
                              " found): the file was changed or damaged after it was written"));
  }
  return codebook;
}

Codebook read_codebook(const std::filesystem::path& path) {
  return codebook_of(read_hdf5_tree(path), path.string());
}

Codebook read_known_codebook(const std::filesystem::path& path) {
  Codebook codebook = read_codebook(path);
  if (codebook.schema_minor > kCodebookSchemaMinor) {
    throw InvalidInput(concat(path.string(), ": schema ", codebook.schema_major, ".", codebook.schema_minor,
                              " is newer than ", kCodebookSchemaMajor, ".", kCodebookSchemaMinor,
                              "; what this version doesn't know in it would be lost; update kvcal"));
  }
  return codebook;
}

}  // namespace kvcal::formats
