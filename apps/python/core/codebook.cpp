#include <nanobind/ndarray.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <optional>
#include <string>
#include <vector>

#include "apps/python/core/bindings.h"
#include "base/error.h"
#include "formats/codebook.h"
#include "formats/datatype_choice.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcal::python {
namespace {

using formats::Codebook;
using formats::Datatype;
using formats::LayerCodebook;
using formats::Magnitudes;
using formats::OutlierSet;
using formats::TensorCodebook;

using Vector = nb::ndarray<nb::numpy, const float, nb::ndim<1>>;
using Matrix = nb::ndarray<nb::numpy, const float, nb::ndim<2>>;

/// A read-only array over `numbers`, which lie within what `owner` is of.
Vector view(const std::vector<float>& numbers, nb::handle owner) {
  return Vector(numbers.data(), {numbers.size()}, owner);
}

/// A property of Owner that is a view.
template <typename Owner>
void def_array(nb::class_<Owner>& type, const char* name, std::vector<float> Owner::*member,
               const char* text) {
  type.def_prop_ro(
      name, [member](nb::handle_t<Owner> self) { return view(nb::cast<const Owner&>(self).*member, self); },
      text, nb::sig(base::concat("def ", name, "(self, /) -> numpy.typing.NDArray[numpy.float32]").c_str()));
}

/// A list of objects that lie within `owner`, and keep it alive.
template <typename T>
nb::list listed(const std::vector<T>& items, nb::handle owner) {
  nb::list list;
  for (const T& item : items) list.append(nb::cast(&item, nb::rv_policy::reference_internal, owner));
  return list;
}

template <typename Owner, typename Item>
void def_list(nb::class_<Owner>& type, const char* name, std::vector<Item> Owner::*member, const char* item,
              const char* text) {
  type.def_prop_ro(
      name, [member](nb::handle_t<Owner> self) { return listed(nb::cast<const Owner&>(self).*member, self); },
      text, nb::sig(base::concat("def ", name, "(self, /) -> list[", item, "]").c_str()));
}

nb::object from_json(const std::string& text) {
  return nb::module_::import_("json").attr("loads")(text);
}

std::string percent(double fraction) {
  return base::concat(100 * fraction, " %");
}

void bind_datatype(nb::module_& module) {
  nb::class_<Datatype> type(
      module, "Datatype",
      "A non-uniform datatype: 2^bits centroids in the normalised range [-1, 1], ascending.");
  def_array(type, "centroids", &Datatype::centroids, "[2^bits], ascending, read-only");
  def_array(
      type, "scale", &Datatype::scale,
      "[channels], of ranges fitted to this datatype: x = scale * centroid + zero; empty: by the thresholds");
  def_array(type, "zero", &Datatype::zero, "[channels], as scale");
  def_array(
      type, "histogram", &Datatype::histogram,
      "[128] equal parts of [-1, 1] of the fitted ranges: the share of the fit's weight in each; else empty");
  type.def_ro("bits", &Datatype::bits)
      .def_ro("qnorm_scale", &Datatype::qnorm_scale,
              "With Q-Norm a code dequantises to centroid * qnorm_scale + qnorm_offset.")
      .def_ro("qnorm_offset", &Datatype::qnorm_offset)
      .def_ro("objective", &Datatype::objective,
              "What the centroids reach: the weighted squared error over the sample.")
      .def_ro("lower_bound", &Datatype::lower_bound, "What no centroids could go below, as proven.")
      .def_ro("weights", &Datatype::weights, "Of the fit: \"fisher\", \"uniform\" or \"none\".")
      .def("__repr__", [](const Datatype& datatype) {
        return base::concat("Datatype(bits=", datatype.bits, ", objective=", datatype.objective, ")");
      });
}

void bind_outlier_set(nb::module_& module) {
  nb::class_<OutlierSet> type(module, "OutlierSet",
                              "Thresholds for one fraction of outliers, and the datatypes fitted within.");
  def_array(type, "lower", &OutlierSet::lower, "[channels], before RoPE; empty where a token has its own");
  def_array(type, "upper", &OutlierSet::upper, "[channels], before RoPE; empty where a token has its own");
  def_array(
      type, "histogram", &OutlierSet::histogram,
      "[128] equal parts of [-1, 1]: the share of the fit's weight in each; empty in files of schema 1.0");
  def_list(type, "datatypes", &OutlierSet::datatypes, "Datatype", "By bits.");
  type.def_ro("fraction", &OutlierSet::fraction).def("__repr__", [](const OutlierSet& set) {
    std::string bits;
    for (const Datatype& datatype : set.datatypes)
      bits += (bits.empty() ? "" : ", ") + std::to_string(datatype.bits);
    return base::concat("OutlierSet(", percent(set.fraction), " outliers; bits: ", bits, ")");
  });
}

/// [count, levels] of one kind of group; None where the file has no magnitudes.
Matrix quantiles(const std::vector<float>& numbers, nb::handle owner) {
  constexpr std::size_t kLevels = formats::kMagnitudeLevels.size();
  return Matrix(numbers.data(), {numbers.size() / kLevels, kLevels}, owner);
}

void bind_magnitudes(nb::module_& module) {
  nb::class_<Magnitudes> type(
      module, "Magnitudes",
      "Quantiles of magnitudes over all tokens, sinks too: [count, 8] at the shares 0.9, 0.99, 0.995, 0.999, "
      "0.9995, 0.9999, 0.99999 and 1.");
  const auto def = [&](const char* name, formats::MagnitudeGroup Magnitudes::*group) {
    type.def_prop_ro(
        name,
        [group](nb::handle_t<Magnitudes> self) {
          return quantiles((nb::cast<const Magnitudes&>(self).*group).quantiles, self);
        },
        nb::sig(base::concat("def ", name, "(self, /) -> numpy.typing.NDArray[numpy.float32]").c_str()));
  };
  def("channel", &Magnitudes::channel);
  def("head", &Magnitudes::head);
  def("tensor", &Magnitudes::tensor);
}

const formats::TensorMagnitudes* magnitudes_of(const TensorCodebook& tensor) {
  return tensor.magnitudes ? &*tensor.magnitudes : nullptr;
}

const Datatype& find(const TensorCodebook& tensor, int bits, double outliers) {
  const formats::ChosenDatatype chosen = formats::find_datatype(tensor.outliers, {bits, outliers, false});
  if (chosen.datatype != nullptr) return *chosen.datatype;
  throw base::InvalidInput(base::concat(tensor.tensor.name, ": no datatype of ", bits, " bits with ",
                                        percent(outliers),
                                        " outliers; its outliers and their datatypes say which there are"));
}

void bind_tensor(nb::module_& module) {
  nb::class_<TensorCodebook> type(module, "Tensor",
                                  "One of the tensors that a layer caches; keys are taken before RoPE.");
  def_array(type, "fisher_channel", &TensorCodebook::fisher_channel,
            "[channels]: the squared gradient summed over samples and tokens, sinks left out");
  def_list(type, "outliers", &TensorCodebook::outliers, "OutlierSet", "By fraction.");
  type.def_prop_ro("name", [](const TensorCodebook& tensor) { return tensor.tensor.name; })
      .def_prop_ro("heads", [](const TensorCodebook& tensor) { return tensor.tensor.heads; })
      .def_prop_ro(
          "dim", [](const TensorCodebook& tensor) { return tensor.tensor.dim; }, "Per head.")
      .def_prop_ro(
          "channels", [](const TensorCodebook& tensor) { return tensor.tensor.channels(); }, "heads * dim")
      .def_prop_ro(
          "thresholds",
          [](const TensorCodebook& tensor) {
            return formats::threshold_scope_name(tensor.tensor.thresholds);
          },
          "\"channel\": stored; \"token\": found when a token is quantised")
      .def_ro("rotation_block", &TensorCodebook::rotation_block,
              "Channels that a Hadamard matrix turns together before anything else; 0: none.")
      .def_prop_ro(
          "threshold_shift", [](const TensorCodebook& tensor) { return tensor.halves.threshold_shift; },
          "How far the thresholds of the sample's two halves differ.")
      .def_prop_ro(
          "datatype_excess", [](const TensorCodebook& tensor) { return tensor.halves.datatype_excess; },
          "How much worse the datatype of one half of the sample is on the other.")
      .def_prop_ro(
          "magnitudes",
          [](const TensorCodebook& tensor) {
            return tensor.magnitudes ? &magnitudes_of(tensor)->cached : nullptr;
          },
          nb::rv_policy::reference_internal, "None in files older than schema 1.2.",
          nb::sig("def magnitudes(self, /) -> Magnitudes | None"))
      .def("find", &find, "bits"_a, "outliers"_a, nb::rv_policy::reference_internal,
           "The datatype of these bits, fitted beside this fraction of outliers. Raises kvcal.Error where "
           "there is none.")
      .def("__repr__", [](const TensorCodebook& tensor) {
        return base::concat("Tensor('", tensor.tensor.name, "', ", tensor.tensor.heads, " heads of ",
                            tensor.tensor.dim, ")");
      });
}

const TensorCodebook& tensor_of(const LayerCodebook& layer, std::string_view name) {
  const TensorCodebook* found = layer.find(name);
  if (found == nullptr)
    throw nb::key_error(base::concat("layer ", layer.index, " caches no tensor '", name, "'").c_str());
  return *found;
}

void bind_layer(nb::module_& module) {
  nb::class_<LayerCodebook> type(module, "Layer",
                                 "What a serving system needs to hold one layer's keys and values.");
  def_list(type, "tensors", &LayerCodebook::tensors, "Tensor", "Keys, values, then others by name.");
  type.def_ro("index", &LayerCodebook::index)
      .def_ro("window", &LayerCodebook::window, "Tokens of sliding-window attention; 0: none.")
      .def_prop_ro(
          "rope", [](const LayerCodebook& layer) { return from_json(layer.rope_json); },
          "None where nothing is rotated.", nb::sig("def rope(self, /) -> dict[str, typing.Any] | None"))
      .def_prop_ro(
          "key", [](const LayerCodebook& layer) -> const TensorCodebook& { return layer.key(); },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "value", [](const LayerCodebook& layer) -> const TensorCodebook& { return layer.value(); },
          nb::rv_policy::reference_internal)
      .def("__getitem__", &tensor_of, "name"_a, nb::rv_policy::reference_internal,
           "The tensor of this name; KeyError without one.")
      .def("__repr__", [](const LayerCodebook& layer) {
        std::string names;
        for (const TensorCodebook& tensor : layer.tensors)
          names += (names.empty() ? "" : ", ") + tensor.tensor.name;
        return base::concat("Layer(", layer.index, ": ", names, ")");
      });
}

void bind_origin(nb::module_& module) {
  using formats::CalibrationInfo;
  using formats::ModelInfo;
  nb::class_<ModelInfo>(module, "Model", "The model that the codebook was made of.")
      .def_ro("name", &ModelInfo::name)
      .def_ro("architecture", &ModelInfo::architecture)
      .def_ro("config_sha256", &ModelInfo::config_sha256)
      .def_ro("weights_sha256", &ModelInfo::weights_sha256)
      .def_ro("num_layers", &ModelInfo::num_layers)
      .def_ro("num_attention_heads", &ModelInfo::num_attention_heads)
      .def_ro("num_kv_heads", &ModelInfo::num_kv_heads)
      .def_ro("head_dim", &ModelInfo::head_dim)
      .def_prop_ro(
          "rope", [](const ModelInfo& model) { return from_json(model.rope_json); },
          nb::sig("def rope(self, /) -> dict[str, typing.Any] | None"))
      .def("__repr__", [](const ModelInfo& model) {
        return base::concat("Model('", model.name, "', ", model.architecture, ", ", model.num_layers,
                            " layers)");
      });
  nb::class_<CalibrationInfo>(module, "Calibration",
                              "What the codebook was made from: all that bears on the result.")
      .def_prop_ro(
          "options", [](const CalibrationInfo& info) { return from_json(info.options_json); },
          nb::sig("def options(self, /) -> dict[str, typing.Any]"))
      .def_prop_ro(
          "texts", [](const CalibrationInfo& info) { return from_json(formats::texts_json(info.texts)); },
          "name and sha256 of each", nb::sig("def texts(self, /) -> list[dict[str, str]]"))
      .def_ro("revision", &CalibrationInfo::revision)
      .def_ro("tokens_sha256", &CalibrationInfo::tokens_sha256)
      .def_ro("samples", &CalibrationInfo::samples)
      .def_ro("seqlen", &CalibrationInfo::seqlen)
      .def_ro("tokens", &CalibrationInfo::tokens)
      .def_ro("bos", &CalibrationInfo::bos)
      .def_ro("sinks", &CalibrationInfo::sinks, "First tokens of a sequence that stay exact.")
      .def_ro("seed", &CalibrationInfo::seed)
      .def_ro("dtype", &CalibrationInfo::dtype)
      .def_ro("device", &CalibrationInfo::device)
      .def_ro("value_scope", &CalibrationInfo::value_scope,
              "What shares a pair of thresholds of values: \"token\" or \"head\".")
      .def_ro("sensitivity", &CalibrationInfo::sensitivity)
      .def_ro("fisher_scale", &CalibrationInfo::fisher_scale)
      .def_ro("loss", &CalibrationInfo::loss, "In nats per token, mean over the samples.")
      .def("__repr__", [](const CalibrationInfo& info) {
        return base::concat("Calibration(", info.samples, " x ", info.seqlen, " tokens, ", info.dtype, ")");
      });
}

std::string described(const Codebook& codebook) {
  std::string outliers, bits;
  if (!codebook.layers.empty()) {
    const auto& sets = codebook.layers.front().tensors.front().outliers;
    for (const OutlierSet& set : sets) outliers += (outliers.empty() ? "" : ", ") + percent(set.fraction);
    for (const Datatype& datatype : sets.empty() ? std::vector<Datatype>() : sets.front().datatypes)
      bits += (bits.empty() ? "" : ", ") + std::to_string(datatype.bits);
  }
  const auto& calibration = codebook.calibration;
  return base::concat("Codebook of ", codebook.model.name, " (", codebook.model.architecture,
                      "): ", codebook.layers.size(), " of ", codebook.model.num_layers,
                      " layers; bits: ", bits, "; outliers: ", outliers, "; from ", calibration.samples,
                      " x ", calibration.seqlen, " tokens; sha256 ", codebook.content_sha256.substr(0, 12));
}

const LayerCodebook& layer_of(const Codebook& codebook, int index) {
  for (const LayerCodebook& layer : codebook.layers)
    if (layer.index == index) return layer;
  throw nb::key_error(base::concat("the codebook has no layer ", index).c_str());
}

}  // namespace

void bind_codebook(nb::module_& module) {
  bind_datatype(module);
  bind_outlier_set(module);
  bind_magnitudes(module);
  bind_tensor(module);
  bind_layer(module);
  bind_origin(module);
  nb::class_<Codebook> type(module, "Codebook",
                            "A codebook file: for each layer of a model, what a serving system needs to hold "
                            "keys and values at a few "
                            "bits. Arrays are read-only views of float32.");
  type.def(
          "__init__",
          [](Codebook* self, const std::filesystem::path& path) {
            const nb::gil_scoped_release others_may_run;
            new (self) Codebook(formats::read_codebook(path));
          },
          "path"_a,
          "Reads the file and checks it whole, its hash too. Raises kvcal.Error with the reason where it is "
          "damaged.")
      .def_ro("model", &Codebook::model)
      .def_ro("calibration", &Codebook::calibration)
      .def_ro("created_by", &Codebook::created_by)
      .def_ro("content_sha256", &Codebook::content_sha256)
      .def_prop_ro(
          "schema",
          [](const Codebook& self) { return base::concat(self.schema_major, ".", self.schema_minor); })
      .def("__len__", [](const Codebook& self) { return self.layers.size(); })
      .def("__getitem__", &layer_of, "index"_a, nb::rv_policy::reference_internal,
           "The layer of this index in the model; KeyError where the file does not hold it.")
      .def(
          "__eq__", [](const Codebook& self, const Codebook& other) { return self == other; },
          nb::is_operator())
      .def("__repr__", &described);
  def_list(type, "layers", &Codebook::layers, "Layer", "Those that the file holds, by index.");
}

}  // namespace kvcal::python
