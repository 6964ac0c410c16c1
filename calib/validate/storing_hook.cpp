#include "calib/validate/storing_hook.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace kvcal::calib {
namespace {

std::span<const float> numbers(const at::Tensor& x) {
  return {x.const_data_ptr<float>(), static_cast<std::size_t>(x.numel())};
}

StorageUse store(const LayerStorages& storages, std::size_t tensor, std::int64_t window,
                 std::span<const float> x, std::span<float> read) {
  try {
    return storages.storages[tensor]->store(0, x, read);
  } catch (const base::InvalidInput& error) {
    throw base::InvalidInput(base::concat(storages.method, ", layer ", storages.layer, ", ",
                                          storages.tensors[tensor].name, "s of window ", window, ": ",
                                          error.what()));
  }
}

// Tokens by channels; weights [channels] or empty.
StorageError measure(std::span<const float> x, std::span<const float> read, std::size_t channels,
                     std::span<const float> weights) {
  std::vector<double> errors(channels), energies(channels);
  for (std::size_t begin = 0; begin < x.size(); begin += channels) {
    for (std::size_t c = 0; c < channels; ++c) {
      const double value = x[begin + c], difference = value - static_cast<double>(read[begin + c]);
      errors[c] += difference * difference;
      energies[c] += value * value;
    }
  }
  StorageError result;
  for (std::size_t c = 0; c < channels; ++c) {
    result.error += errors[c];
    result.energy += energies[c];
    if (weights.empty()) continue;
    result.weighted_error += static_cast<double>(weights[c]) * errors[c];
    result.weighted_energy += static_cast<double>(weights[c]) * energies[c];
  }
  return result;
}

}  // namespace

LayerStorages layer_storages(const std::string& name, const CacheMethod& method, int layer,
                             const std::vector<formats::CachedTensor>& tensors) {
  LayerStorages result{name, layer, tensors, {}};
  for (const formats::CachedTensor& tensor : tensors)
    result.storages.push_back(method.storage(layer, tensor));
  return result;
}

at::Tensor StoringHook::show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) {
  const bool kept = storages_.storages[tensor] == nullptr || storages_.storages[tensor]->point() != point ||
                    (only_ >= 0 && static_cast<std::size_t>(only_) != tensor);
  if (kept) return x;
  const at::Tensor plain = x.to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor read = at::empty_like(plain);
  (void)store(storages_, tensor, window_, numbers(plain),
              {read.mutable_data_ptr<float>(), static_cast<std::size_t>(read.numel())});
  return read.to(x.device(), x.scalar_type());
}

StorageError& StorageError::operator+=(const StorageError& other) {
  error += other.error;
  energy += other.energy;
  weighted_error += other.weighted_error;
  weighted_energy += other.weighted_energy;
  use += other.use;
  return *this;
}

MeasuringHook::MeasuringHook(const std::vector<LayerStorages>& methods,
                             const std::vector<std::vector<float>>& weights, std::int64_t window)
    : methods_(methods), weights_(weights), window_(window) {
  for (const LayerStorages& method : methods) errors_.emplace_back(method.storages.size());
}

at::Tensor MeasuringHook::show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) {
  at::Tensor plain;
  std::vector<float> read;
  for (std::size_t m = 0; m < methods_.size(); ++m) {
    const TensorStorage* storage = methods_[m].storages[tensor].get();
    if (storage == nullptr || storage->point() != point) continue;
    if (!plain.defined()) {
      plain = x.to(at::kCPU, at::kFloat).contiguous();
      read.resize(static_cast<std::size_t>(plain.numel()));
    }
    const StorageUse use = store(methods_[m], tensor, window_, numbers(plain), read);
    errors_[m][tensor] =
        measure(numbers(plain), read, static_cast<std::size_t>(plain.size(1)), weights_[tensor]);
    errors_[m][tensor].use = use;
  }
  return x;
}

}  // namespace kvcal::calib
