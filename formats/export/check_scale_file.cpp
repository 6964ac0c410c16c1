// The check of a scale file of onnx-genai.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "formats/internal/export_check.h"

namespace kvcal::formats::export_check {
namespace {

using base::concat;
using base::InvalidInput;
using nlohmann::json;

std::string row_name(int layer, bool value) {
  return concat("layer ", layer, ", ", tensor_name(value), "s");
}

/// The numbers that JSON has not, by the names that Python writes.
std::optional<float> not_finite(const json& entry) {
  const std::string name = text_of(&entry);
  if (name == "NaN") return std::numeric_limits<float>::quiet_NaN();
  if (name == "Infinity") return std::numeric_limits<float>::infinity();
  if (name == "-Infinity") return -std::numeric_limits<float>::infinity();
  return std::nullopt;
}

/// The numbers of nested lists, one after the other, as the builder takes them. False: there is something else.
bool flatten(const json& entry, std::vector<float>& numbers) {
  if (entry.is_array())
    return std::ranges::all_of(entry, [&](const json& part) { return flatten(part, numbers); });
  if (const std::optional<float> number = not_finite(entry)) {
    numbers.push_back(*number);
    return true;
  }
  if (!entry.is_number()) return false;
  const auto number = entry.get<double>();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool fits = std::abs(number) <= std::numeric_limits<float>::max();
  numbers.push_back(fits ? static_cast<float>(number) : kInfinity);
  return true;
}

std::optional<ScaledType> type_of(const json* qmax) {
  for (const ScaledType type : {ScaledType::int8, ScaledType::int4, ScaledType::fp8})
    if (is_number(qmax, largest_code(type))) return type;
  return std::nullopt;
}

/// Of each row the layer: layer_ids where they can be used, else 0, 1, ...
std::vector<int> layers_of(const json* ids, std::size_t rows, ExportCheck& check) {
  std::vector<int> dense(rows);
  for (std::size_t i = 0; i < rows; ++i) dense[i] = static_cast<int>(i);
  if (ids == nullptr) {
    add_finding(check, "layer_ids", "is missing: the builder takes the rows as layers 0, 1, 2, ...");
    return dense;
  }
  std::vector<int> layers;
  for (const json& id : *ids) {
    const std::optional<int> layer = count_of(&id, kMaxLayers);
    if (!layer || std::ranges::find(layers, *layer) != layers.end()) {
      add_finding(check, "layer_ids",
                  concat(layer ? "names twice the layer " : "holds what is no layer: ", id.dump()));
      return dense;
    }
    layers.push_back(*layer);
  }
  return layers;
}

/// The length that most rows have.
std::size_t usual_length(const std::vector<Scales>& rows) {
  std::map<std::size_t, int> lengths;
  for (const Scales& row : rows) ++lengths[row.numbers.size()];
  const auto most = std::ranges::max_element(lengths, {}, [](const auto& pair) { return pair.second; });
  return most == lengths.end() ? 0 : most->first;
}

void check_rows(const std::vector<Scales>& rows, std::optional<ScaledType> type, const Codebook* codebook,
                ExportCheck& check) {
  const std::size_t usual = usual_length(rows);
  for (const Scales& row : rows) {
    if (row.numbers.empty() || row.numbers.size() != usual)
      add_finding(check, row.name,
                  concat("has ", counted(row.numbers.size(), "number"), ", most others ", usual,
                         ": the builder refuses"));
    check_numbers(row, check);
    if (codebook != nullptr && type && !row.numbers.empty())
      compare(row, *codebook, row.numbers.size() == 1 ? ScaleScope::tensor : ScaleScope::channel, *type,
              check);
  }
}

/// Layers from 0 to the last, or all of the codebook's model.
void check_layers(const std::vector<int>& layers, const Codebook* codebook, ExportCheck& check) {
  const int last = layers.empty() ? -1 : *std::ranges::max_element(layers);
  const int expected = codebook != nullptr ? codebook->model.num_layers : last + 1;
  for (int layer = 0; layer < expected; ++layer) {
    if (std::ranges::find(layers, layer) == layers.end())
      add_finding(check, concat("layer ", layer), "is missing: the builder refuses a model that has it");
  }
  if (last >= expected)
    add_finding(check, concat("layer ", last),
                concat("is not in the codebook's model of ",
                       counted(static_cast<std::size_t>(expected), "layer"), ": of another model"));
}

/// The lists of a scale file.
struct Lists {
  const json* keys = nullptr;
  const json* values = nullptr;
  const json* layer_ids = nullptr;  ///< null: there are none
};

/// Throws InvalidInput where a list is missing, empty or too long.
Lists lists_of(const json& top, const std::filesystem::path& path) {
  const json* scales = member(&top, "scales");
  const Lists lists{member(scales, "k_scales"), member(scales, "v_scales"), member(&top, "layer_ids")};
  for (const json* list :
       {lists.keys, lists.values, lists.layer_ids != nullptr ? lists.layer_ids : lists.keys}) {
    if (list == nullptr || !list->is_array() || list->empty() || list->size() > kMaxLayers) {
      throw InvalidInput(
          concat(path.string(), ": not a scale file of onnx-genai, which has lists scales.k_scales, ",
                 "scales.v_scales and layer_ids; make one with kvcal export --format onnx-genai"));
    }
  }
  return lists;
}

/// The type that the scales are for; empty where qmax does not say one.
std::optional<ScaledType> check_qmax(const json* qmax, ExportCheck& check) {
  const std::optional<ScaledType> type = type_of(qmax);
  if (!type) {
    add_finding(
        check, "qmax",
        qmax == nullptr
            ? std::string("is missing: the builder takes the scales as they are, whatever type they are for")
            : concat("is ", qmax->dump(), ", not 128 (int8), 8 (int4) or 448 (fp8): the builder multiplies ",
                     "every scale by it and divides by its own"));
  }
  return type;
}

/// Adds the rows of one list that hold numbers, as many as there are layers.
void read_rows(const json& list, bool value, const std::vector<int>& layers, std::vector<Scales>& rows,
               ExportCheck& check) {
  if (list.size() != layers.size())
    add_finding(check, value ? "v_scales" : "k_scales",
                concat("has ", counted(list.size(), "row"), " for ", counted(layers.size(), "layer"),
                       ": the builder refuses"));
  for (std::size_t i = 0; i < std::min(list.size(), layers.size()); ++i) {
    Scales row{row_name(layers[i], value), layers[i], value, {}};
    if (flatten(list[i], row.numbers)) {
      rows.push_back(std::move(row));
    } else {
      add_finding(check, row.name, "holds what is no number: the builder refuses");
    }
  }
}

}  // namespace

ExportCheck check_scale_file(const std::filesystem::path& path, const Codebook* codebook) {
  const json file = read_object(path);
  ExportCheck check;
  check.format = "onnx-genai";
  // The builder reads the part that is named as its ONNX file, model.onnx, before all else.
  const json* part = member(&file, "model");
  if (part != nullptr && member(&file, "scales") != nullptr)
    add_finding(check, "model", "hides the scales beside it: the builder reads this part alone");
  const json& top = part != nullptr ? *part : file;
  const Lists lists = lists_of(top, path);
  const std::optional<ScaledType> type = check_qmax(member(&top, "qmax"), check);
  const std::vector<int> layers = layers_of(lists.layer_ids, lists.keys->size(), check);
  check_layers(layers, codebook, check);
  std::vector<Scales> rows;
  read_rows(*lists.keys, false, layers, rows, check);
  read_rows(*lists.values, true, layers, rows, check);
  check_rows(rows, type, codebook, check);
  return check;
}

}  // namespace kvcal::formats::export_check
