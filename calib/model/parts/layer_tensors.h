// calib/model/parts/layer_tensors.h: the weights of one layer:
// their names and shapes, and by them their values.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "calib/model/parts/linear.h"
#include "calib/model/weights.h"

namespace kvcal::calib {

/// A list of tensors that is written once, for checking and reading ahead (specs) as for loading. Names are
/// without the prefix that all of the layer's have.
class LayerTensors {
 public:
  /// prefix: "model.layers.7.", with its last dot.
  explicit LayerTensors(std::string prefix) : prefix_(std::move(prefix)) {}

  void add(const std::string& name, std::vector<std::int64_t> shape);
  /// NAME.weight [out, in], and NAME.bias [out] where it has one.
  void add_linear(const std::string& name, std::int64_t out, std::int64_t in, bool bias);

  [[nodiscard]] const std::vector<TensorSpec>& specs() const { return specs_; }

  /// Throws as WeightLoader::load() does; base::Error for a name that was not added.
  [[nodiscard]] at::Tensor load(const WeightLoader& weights, const std::string& name) const;
  [[nodiscard]] Linear load_linear(const WeightLoader& weights, const std::string& name) const;

 private:
  [[nodiscard]] const TensorSpec* find(const std::string& name) const;

  std::string prefix_;
  std::vector<TensorSpec> specs_;
};

}  // namespace kvcal::calib
