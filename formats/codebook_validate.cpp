#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>

#include "base/error.h"
#include "formats/datatype_choice.h"
#include "formats/internal/codebook_rules.h"
#include "formats/internal/json.h"
#include "formats/json.h"

namespace kvcal::formats {
namespace {

using base::concat;

constexpr int kMaxBits = 8;
constexpr int kMaxLayers = 10000;
/// Of a centroid: rounding may take one that lies at a threshold beyond 1.
constexpr float kMostCentroid = 1.001F;
constexpr int kMaxExtent = 1 << 20;  // heads, channels per head: keeps every product of two far from overflow

/// Checks the parts of one codebook, knowing the file for its messages.
class Validator {
 public:
  explicit Validator(const std::string& file) : file_(file) {}

  void check(const Codebook& codebook) const {
    text("/@created_by", codebook.created_by);
    check_model(codebook.model);
    check_calibration(codebook.calibration);
    if (codebook.layers.empty()) fail("/layers", "no layer; expected at least one");
    for (std::size_t i = 0; i < codebook.layers.size(); ++i) {
      const LayerCodebook& layer = codebook.layers[i];
      if (i > 0 && codebook.layers[i - 1].index == layer.index)
        fail(layer_path(layer.index), "the layer is given twice");
      integer(layer_path(layer.index), "the layer", layer.index, 0, codebook.model.num_layers - 1);
      check_layer(layer);
    }
    if (codebook.recipe) check_recipe(*codebook.recipe, codebook);
  }

 private:
  [[noreturn]] void fail(std::string_view path, std::string_view what) const {
    throw base::InvalidInput(concat(file_, ": ", path, ": ", what));
  }

  void integer(std::string_view path, std::string_view name, std::int64_t value, std::int64_t low,
               std::int64_t high) const {
    if (value < low || value > high)
      fail(path, concat(name, " is ", value, "; expected ", low, " to ", high));
  }

  void real(std::string_view path, std::string_view name, double value, bool negative_too) const {
    if (!std::isfinite(value) || (!negative_too && value < 0)) {
      fail(path,
           concat(name, " is ", value, "; expected a finite number", negative_too ? "" : ", not negative"));
    }
  }

  void text(std::string_view path, const std::string& value) const {
    if (value.find('\0') != std::string::npos || !is_utf8(value)) fail(path, "is not UTF-8 text");
    if (value.size() > kMaxCodebookText)
      fail(path, concat("has ", value.size(), " bytes; expected ", kMaxCodebookText, " at most"));
  }

  /// "" among the names: not said.
  void one_of(std::string_view path, const std::string& value,
              std::initializer_list<std::string_view> names) const {
    text(path, value);
    if (std::ranges::find(names, std::string_view(value)) != names.end()) return;
    std::string expected;
    for (const std::string_view name : names)
      if (!name.empty()) expected += concat(expected.empty() ? "" : ", ", name);
    fail(path, concat("is '", value.substr(0, 40), "'; expected one of ", expected));
  }

  void json(std::string_view path, const std::string& value) const {
    text(path, value);
    (void)parse_json(value, concat(file_, ": ", path));
  }

  void check_model(const ModelInfo& model) const {
    text("/model@name", model.name);
    text("/model@architecture", model.architecture);
    text("/model@config_sha256", model.config_sha256);
    text("/model@weights_sha256", model.weights_sha256);
    json("/model@rope", model.rope_json);
    integer("/model", "num_layers", model.num_layers, 1, kMaxLayers);
    integer("/model", "num_attention_heads", model.num_attention_heads, 1, kMaxExtent);
    integer("/model", "num_kv_heads", model.num_kv_heads, 1, kMaxExtent);
    integer("/model", "head_dim", model.head_dim, 1, kMaxExtent);
  }

  void check_calibration(const CalibrationInfo& calibration) const {
    constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
    json("/calibration@options", calibration.options_json);
    for (const TextInfo& info : calibration.texts) {
      text("/calibration@texts", info.name);
      text("/calibration@texts", info.sha256);
    }
    text("/calibration@texts", texts_json(calibration.texts));
    text("/calibration@tokens_sha256", calibration.tokens_sha256);
    text("/calibration@bos", calibration.bos);
    text("/calibration@dtype", calibration.dtype);
    text("/calibration@device", calibration.device);
    one_of("/calibration@value_scope", calibration.value_scope, {"token", "head", ""});
    one_of("/calibration@sensitivity", calibration.sensitivity, {"fisher", "none", ""});
    one_of("/calibration@fisher_scale", calibration.fisher_scale, {"range", "none", ""});
    integer("/calibration", "samples", calibration.samples, 0, kMax);
    integer("/calibration", "seqlen", calibration.seqlen, 0, kMax);
    integer("/calibration", "tokens", calibration.tokens, 0, kMax);
    integer("/calibration", "sinks", calibration.sinks, 0, std::numeric_limits<int>::max());
    real("/calibration", "loss", calibration.loss, true);
  }

  void check_recipe(const Recipe& recipe, const Codebook& codebook) const {
    constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
    json("/recipe@options", recipe.options_json);
    one_of("/recipe@source", recipe.source, {"estimated", "measured"});
    integer(kRecipe, "context", recipe.context, 1, kMax);
    integer(kRecipe, "bytes", recipe.bytes, 0, kMax);
    real(kRecipe, "bits_per_value", recipe.bits_per_value, false);
    real(kRecipe, "divergence", recipe.divergence, false);
    floats("/recipe/curve", recipe.curve, recipe.curve.size());
    if (recipe.curve.empty() || recipe.curve.size() % kCurveColumns != 0)
      fail("/recipe/curve", concat("has ", recipe.curve.size(), " numbers; expected pairs"));
    for (std::size_t i = kCurveColumns; i < recipe.curve.size(); i += kCurveColumns) {
      if (recipe.curve[i] < recipe.curve[i - kCurveColumns])
        fail("/recipe/curve", concat("row ", i / kCurveColumns, " has fewer bits than the one before it"));
    }
    std::size_t tensors = 0;
    for (const LayerCodebook& layer : codebook.layers) {
      for (const TensorCodebook& tensor : layer.tensors) {
        // In the same order: the first that differs is missing, or no tensor, or given twice.
        const std::string path = recipe_path({.layer = layer.index, .tensor = tensor.tensor.name});
        if (tensors == recipe.tensors.size()) fail(path, "is missing; a recipe is for every tensor");
        const TensorRecipe& one = recipe.tensors[tensors++];
        if (one.layer != layer.index || one.tensor != tensor.tensor.name)
          fail(recipe_path(one),
               concat("found where ", path, " is expected: a recipe is once for every tensor"));
        check_tensor_recipe(path, one, tensor);
      }
    }
    if (tensors < recipe.tensors.size())
      fail(recipe_path(recipe.tensors[tensors]), "is no tensor of this codebook");
  }

  void check_tensor_recipe(const std::string& path, const TensorRecipe& recipe,
                           const TensorCodebook& tensor) const {
    real(path, "divergence", recipe.divergence, false);
    if (!(recipe.fraction >= 0 && recipe.fraction < 0.5))
      fail(path, concat("an outlier fraction of ", recipe.fraction, "; expected 0 <= fraction < 0.5"));
    if (recipe.bits == kKeptBits) return;
    if (find_datatype(tensor.outliers, {recipe.bits, recipe.fraction, false}).datatype != nullptr) return;
    fail(path, concat("asks for ", recipe.bits, " bits and an outlier fraction of ", recipe.fraction,
                      ", and the tensor holds no such datatype"));
  }

  void check_layer(const LayerCodebook& layer) const {
    const std::string path = layer_path(layer.index);
    if (layer.tensors.empty()) fail(path, "no tensor; expected at least one");
    check_descriptions(path, layer);
    integer(path, "window", layer.window, 0, std::numeric_limits<std::int64_t>::max());
    json(path + "@rope", layer.rope_json);
    for (const TensorCodebook& tensor : layer.tensors) check_tensor(path + "/" + tensor.tensor.name, tensor);
  }

  /// Names and sizes, under the names that the file has for them.
  void check_descriptions(const std::string& path, const LayerCodebook& layer) const {
    const bool has_kv_heads = layer.has_kv_heads();
    if (has_kv_heads) {
      integer(path, "kv_heads", layer.key().tensor.heads, 1, kMaxExtent);
      integer(path, "key_dim", layer.key().tensor.dim, 1, kMaxExtent);
      integer(path, "value_dim", layer.value().tensor.dim, 1, kMaxExtent);
    }
    const std::string* previous = nullptr;
    for (const TensorCodebook& codebook : layer.tensors) {
      const CachedTensor& tensor = codebook.tensor;
      const std::string group = path + "/" + tensor.name;
      if (!is_tensor_name(tensor.name)) {
        fail(group, concat("'", tensor.name, "' is no name of a tensor; expected lower-case letters, digits ",
                           "and _, a letter first, and no name that a layer's attributes have"));
      }
      for (const char* const end : {kRotated, kEnvelope}) {
        if ((!codebook.rotated.empty() || codebook.magnitudes) && layer.find(tensor.name + end) != nullptr)
          fail(group + end, "is a tensor's name, and where statistics of another lie");
      }
      if (previous != nullptr && *previous == tensor.name) fail(group, "the tensor is given twice");
      previous = &tensor.name;
      if (has_kv_heads && (tensor.name == "key" || tensor.name == "value")) continue;
      integer(group, "heads", tensor.heads, 1, kMaxExtent);
      integer(group, "dim", tensor.dim, 1, kMaxExtent);
    }
  }

  static bool is_tensor_name(std::string_view name) {
    // Not isalpha(), which asks the locale.
    const auto letter = [](char c) { return c >= 'a' && c <= 'z'; };
    // What else a layer has, in its group and in the JSON of inspect.
    constexpr std::array<std::string_view, 6> kTaken = {"layer",    "rope",    "window",
                                                        "kv_heads", "key_dim", "value_dim"};
    return !name.empty() && letter(name.front()) && std::ranges::find(kTaken, name) == kTaken.end() &&
           std::ranges::all_of(name, [&](char c) { return letter(c) || (c >= '0' && c <= '9') || c == '_'; });
  }

  void check_tensor(const std::string& path, const TensorCodebook& tensor) const {
    const auto channels = static_cast<std::size_t>(tensor.tensor.channels());
    const std::size_t thresholds = tensor.tensor.thresholds == ThresholdScope::channel ? channels : 0;
    floats(path + "/fisher_channel", tensor.fisher_channel, channels);
    if (const auto bad = std::ranges::find_if(tensor.fisher_channel, [](float f) { return f < 0; });
        bad != tensor.fisher_channel.end()) {
      fail(path + "/fisher_channel",
           concat("element ", bad - tensor.fisher_channel.begin(), " is negative: ", *bad));
    }
    real(path, "threshold_shift", tensor.halves.threshold_shift, true);
    real(path, "datatype_excess", tensor.halves.datatype_excess, true);
    check_rotation(path, tensor);
    if (tensor.outliers.empty()) fail(path, "no outliers_... group; expected at least one");
    check_sets(path, tensor.outliers, thresholds, Datatypes::some);
    check_sets(path + kWithSinks, tensor.with_sinks, thresholds, Datatypes::some);
    check_sets(path + kRotated, tensor.rotated, thresholds, Datatypes::none);
    check_fractions(path + kWithSinks, tensor.with_sinks, tensor.outliers);
    check_fractions(path + kRotated, tensor.rotated, tensor.outliers);
    if (!tensor.magnitudes) return;
    check_magnitudes(path + kMagnitudes, tensor.magnitudes->cached, tensor.tensor);
    if (tensor.magnitudes->rotated)
      check_magnitudes(path + kRotated + kMagnitudes, *tensor.magnitudes->rotated, tensor.tensor);
    if (tensor.magnitudes->envelope)
      check_magnitudes(path + kEnvelope + kMagnitudes, *tensor.magnitudes->envelope, tensor.tensor);
  }

  void check_rotation(const std::string& path, const TensorCodebook& tensor) const {
    const int block = tensor.rotation_block;
    if (block == 0) return;
    integer(path, "rotation_block", block, 1, tensor.tensor.dim);
    if (!std::has_single_bit(static_cast<unsigned>(block)) || tensor.tensor.dim % block != 0) {
      fail(path, concat("rotation_block is ", block, "; expected a power of two that divides the ",
                        tensor.tensor.dim, " channels of a head"));
    }
    if (tensor.tensor.thresholds == ThresholdScope::channel)
      fail(path, "is turned, and its thresholds are a channel's; expected a token's");
  }

  void check_magnitudes(const std::string& path, const Magnitudes& magnitudes,
                        const CachedTensor& tensor) const {
    const auto check = [&](const char* name, const MagnitudeGroup& group, std::int64_t count) {
      const auto rows = static_cast<std::size_t>(count);
      floats(concat(path, "/", name, "_quantiles"), group.quantiles, rows * kMagnitudeLevels.size());
      floats(concat(path, "/", name, "_best"), group.best, rows * kScaledTypes);
      for (const auto* numbers : {&group.quantiles, &group.best}) {
        if (std::ranges::any_of(*numbers, [](float number) { return number < 0; }))
          fail(concat(path, "/", name), "a magnitude is negative");
      }
      const std::span<const float> quantiles = group.quantiles;
      for (std::size_t row = 0; row < rows; ++row) {
        if (!std::ranges::is_sorted(
                quantiles.subspan(row * kMagnitudeLevels.size(), kMagnitudeLevels.size())))
          fail(concat(path, "/", name, "_quantiles"), concat("row ", row, " descends"));
      }
    };
    check("channel", magnitudes.channel, tensor.channels());
    check("head", magnitudes.head, tensor.heads);
    check("tensor", magnitudes.tensor, 1);
  }

  // What an ablation adds has the tensor's own fractions, or none.
  void check_fractions(const std::string& path, const std::vector<OutlierSet>& sets,
                       const std::vector<OutlierSet>& own) const {
    if (sets.empty() || std::ranges::equal(sets, own, {}, &OutlierSet::fraction, &OutlierSet::fraction))
      return;
    fail(path, "has other outlier fractions than the tensor itself");
  }

  enum class Datatypes { some, none };

  void check_sets(const std::string& path, const std::vector<OutlierSet>& sets, std::size_t thresholds,
                  Datatypes datatypes) const {
    std::string previous;
    for (const OutlierSet& set : sets) {
      // -0 would be 0 a second time, under a name of its own.
      if (!(set.fraction >= 0 && set.fraction < 0.5) || std::signbit(set.fraction))
        fail(path, concat("an outlier fraction of ", set.fraction, "; expected 0 <= fraction < 0.5"));
      const std::string name = outlier_group_name(set.fraction);
      if (name == previous) fail(concat(path, "/", name), "the fraction is given twice");
      check_outliers(concat(path, "/", name), set, thresholds, datatypes);
      previous = name;
    }
  }

  void check_outliers(const std::string& path, const OutlierSet& set, std::size_t thresholds,
                      Datatypes datatypes) const {
    floats(path + "/lower", set.lower, thresholds);
    floats(path + "/upper", set.upper, thresholds);
    for (std::size_t i = 0; i < thresholds; ++i) {
      if (set.lower[i] > set.upper[i])
        fail(path, concat("channel ", i, ": lower ", set.lower[i], " is above upper ", set.upper[i]));
    }
    if (!set.histogram.empty()) check_histogram(path + "/histogram", set.histogram);
    if (set.datatypes.empty() != (datatypes == Datatypes::none)) {
      fail(path, set.datatypes.empty() ? "no nuq... group; expected at least one"
                                       : "a nuq... group; expected thresholds alone");
    }
    int previous = 0;
    for (const Datatype& datatype : set.datatypes) {
      integer(path, "the number of bits of a datatype", datatype.bits, 1, kMaxBits);
      const std::string group = concat(path, "/nuq", datatype.bits);
      if (datatype.bits == previous) fail(group, "the datatype is given twice");
      check_datatype(group + "/centroids", datatype);
      check_ranges(group, datatype, thresholds);
      previous = datatype.bits;
    }
  }

  void check_histogram(const std::string& path, const std::vector<float>& shares) const {
    floats(path, shares, kHistogramBins);
    const auto bad = std::ranges::find_if(shares, [](float share) { return share < 0; });
    if (bad != shares.end()) fail(path, concat("element ", bad - shares.begin(), " is negative: ", *bad));
  }

  // channels: of the thresholds that the ranges take the place of; 0 where those are a token's.
  void check_ranges(const std::string& path, const Datatype& datatype, std::size_t channels) const {
    if (!datatype.has_ranges() && datatype.zero.empty() && datatype.histogram.empty()) return;
    if (channels == 0) fail(path + "/scale", "there is one, and thresholds are a token's");
    floats(path + "/scale", datatype.scale, channels);
    floats(path + "/zero", datatype.zero, channels);
    if (const auto bad = std::ranges::find_if(datatype.scale, [](float scale) { return scale < 0; });
        bad != datatype.scale.end())
      fail(path + "/scale", concat("element ", bad - datatype.scale.begin(), " is negative: ", *bad));
    if (!datatype.histogram.empty()) check_histogram(path + "/histogram", datatype.histogram);
  }

  void check_datatype(const std::string& path, const Datatype& datatype) const {
    floats(path, datatype.centroids, std::size_t{1} << datatype.bits);
    for (std::size_t i = 1; i < datatype.centroids.size(); ++i) {
      if (datatype.centroids[i] < datatype.centroids[i - 1]) {
        fail(path, concat("centroid ", i, " (", datatype.centroids[i], ") is below the one before it (",
                          datatype.centroids[i - 1], ")"));
      }
    }
    const auto far =
        std::ranges::find_if(datatype.centroids, [](float c) { return std::abs(c) > kMostCentroid; });
    if (far != datatype.centroids.end())
      fail(path, concat("centroid ", far - datatype.centroids.begin(), " is ", *far, "; expected -1 to 1"));
    real(path, "qnorm_scale", datatype.qnorm_scale, false);
    real(path, "qnorm_offset", datatype.qnorm_offset, true);
    real(path, "objective", datatype.objective, false);
    real(path, "lower_bound", datatype.lower_bound, false);
    // The bound is proven in exact arithmetic, the objective summed in double.
    if (datatype.lower_bound > datatype.objective * (1 + 1e-9)) {
      fail(path,
           concat("lower_bound ", datatype.lower_bound, " is above the objective ", datatype.objective));
    }
    one_of(path + "@weights", datatype.weights, {"fisher", "uniform", "none"});
  }

  void floats(const std::string& path, std::span<const float> values, std::size_t expected) const {
    if (values.size() != expected)
      fail(path, concat("has ", values.size(), " elements; the layer's shape asks for ", expected));
    const auto bad = std::ranges::find_if(values, [](float value) { return !std::isfinite(value); });
    if (bad != values.end()) fail(path, concat("element ", bad - values.begin(), " is not finite: ", *bad));
  }

  const std::string& file_;
};

}  // namespace

void validate_codebook(const Codebook& codebook, const std::string& file) {
  Validator(file).check(codebook);
}

}  // namespace kvcal::formats
