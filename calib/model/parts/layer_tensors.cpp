#include "calib/model/parts/layer_tensors.h"

#include <algorithm>

#include "base/error.h"

namespace kvcal::calib {

void LayerTensors::add(const std::string& name, std::vector<std::int64_t> shape) {
  specs_.push_back({prefix_ + name, std::move(shape)});
}

void LayerTensors::add_linear(const std::string& name, std::int64_t out, std::int64_t in, bool bias) {
  add(name + ".weight", {out, in});
  if (bias) add(name + ".bias", {out});
}

at::Tensor LayerTensors::load(const WeightLoader& weights, const std::string& name) const {
  const TensorSpec* spec = find(name);
  if (spec == nullptr)
    throw base::Error(base::concat("tensor ", prefix_, name, " is not in the layer's list"));
  return weights.load(*spec);
}

Linear LayerTensors::load_linear(const WeightLoader& weights, const std::string& name) const {
  const TensorSpec* bias = find(name + ".bias");
  return {load(weights, name + ".weight"), bias != nullptr ? weights.load(*bias) : at::Tensor()};
}

const TensorSpec* LayerTensors::find(const std::string& name) const {
  const auto found = std::ranges::find(specs_, prefix_ + name, &TensorSpec::name);
  return found != specs_.end() ? &*found : nullptr;
}

}  // namespace kvcal::calib
