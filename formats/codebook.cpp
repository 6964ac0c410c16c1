#include "formats/codebook.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"
#include "formats/internal/codebook_rules.h"

namespace kvcal::formats {
namespace {

const TensorCodebook& require(const LayerCodebook& layer, std::string_view name) {
  const TensorCodebook* found = layer.find(name);
  if (found == nullptr)
    throw base::InvalidInput(base::concat("layer ", layer.index, ": no tensor '", name, "'"));
  return *found;
}

std::string four_digits(int number) {
  std::string digits = std::to_string(number);
  digits.insert(0, digits.size() < 4 ? 4 - digits.size() : 0, '0');
  return digits;
}

}  // namespace

std::string_view threshold_scope_name(ThresholdScope scope) {
  return scope == ThresholdScope::channel ? "channel" : "token";
}

std::pair<bool, std::string> tensor_rank(const CachedTensor& tensor) {
  return {tensor.name != "key" && tensor.name != "value", tensor.name};
}

const TensorCodebook* LayerCodebook::find(std::string_view name) const {
  const auto found = std::ranges::find_if(
      tensors, [name](const TensorCodebook& codebook) { return codebook.tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

const TensorRecipe* Recipe::find(int layer, std::string_view tensor) const {
  const auto found = std::ranges::find_if(
      tensors, [&](const TensorRecipe& one) { return one.layer == layer && one.tensor == tensor; });
  return found == tensors.end() ? nullptr : &*found;
}

const TensorCodebook* Codebook::find(int layer, std::string_view tensor) const {
  const auto found = std::ranges::find(layers, layer, &LayerCodebook::index);
  return found == layers.end() ? nullptr : found->find(tensor);
}

const TensorCodebook& LayerCodebook::key() const {
  return require(*this, "key");
}

const TensorCodebook& LayerCodebook::value() const {
  return require(*this, "value");
}

// The layer is not const here, so neither is its tensor.
TensorCodebook& LayerCodebook::key() {
  return const_cast<TensorCodebook&>(require(*this, "key"));
}

TensorCodebook& LayerCodebook::value() {
  return const_cast<TensorCodebook&>(require(*this, "value"));
}

bool LayerCodebook::has_kv_heads() const {
  const TensorCodebook* keys = find("key");
  const TensorCodebook* values = find("value");
  return keys != nullptr && values != nullptr && keys->tensor.thresholds == ThresholdScope::channel &&
         values->tensor.thresholds == ThresholdScope::token && keys->tensor.heads == values->tensor.heads;
}

std::string outlier_group_name(double fraction) {
  std::array<char, 64> text{};
  constexpr int kPercentGDigits = 6;
  const auto result = std::to_chars(text.data(), text.data() + text.size(), fraction,
                                    std::chars_format::general, kPercentGDigits);
  return base::concat("outliers_", std::string_view(text.data(), result.ptr));
}

std::string layer_path(int index) {
  return "/layers/" + four_digits(index);
}

std::string recipe_path(int layer) {
  return base::concat(kRecipe, "/", four_digits(layer));
}

std::string recipe_path(const TensorRecipe& tensor) {
  return base::concat(recipe_path(tensor.layer), "/", tensor.tensor);
}

void sort_recipe(std::vector<TensorRecipe>& tensors) {
  std::ranges::sort(tensors, {}, [](const TensorRecipe& one) {
    return std::pair(one.layer, tensor_rank({.name = one.tensor}));
  });
}

}  // namespace kvcal::formats
