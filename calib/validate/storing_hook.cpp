#include "calib/validate/storing_hook.h"

#include <ATen/ATen.h>

#include <optional>
#include <utility>

#include "base/error.h"
#include "calib/validate/attention_shares.h"

namespace kvcal::calib {
namespace {

std::span<const float> numbers(const at::Tensor& x) {
  return {x.const_data_ptr<float>(), static_cast<std::size_t>(x.numel())};
}

// x: [tokens, channels] float32 on the CPU, from `first` on; returns what it comes back as.
std::pair<at::Tensor, StorageUse> store(const LayerStorages& storages, std::size_t tensor,
                                        std::int64_t window, std::int64_t first, const at::Tensor& x) {
  const at::Tensor read = at::empty_like(x);
  try {
    const StorageUse use = storages.storages[tensor]->store(
        first, numbers(x), {read.mutable_data_ptr<float>(), static_cast<std::size_t>(read.numel())});
    return {read, use};
  } catch (const base::InvalidInput& error) {
    throw base::InvalidInput(base::concat(
        storages.method, ", layer ", storages.layer, ", ", storages.tensors[tensor].name, "s of window ",
        window, first > 0 ? base::concat(" from token ", first, " on") : "", ": ", error.what()));
  }
}

at::Tensor plain(const at::Tensor& x) {
  return x.to(at::kCPU, at::kFloat).contiguous();
}

bool takes(const LayerStorages& storages, std::size_t tensor, fisher::CachePoint point) {
  const TensorStorage* storage = storages.storages[tensor].get();
  return storage != nullptr && storage->point() == point;
}

// Tokens by channels; weights [channels] or empty.
StorageError measure_error(std::span<const float> x, std::span<const float> read, std::size_t channels,
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
  const bool asked = only_ < 0 || static_cast<std::size_t>(only_) == tensor;
  if (!asked || !takes(storages_, tensor, point)) return x;
  return store(storages_, tensor, window_, 0, plain(x)).first.to(x.device(), x.scalar_type());
}

GrowingHook::GrowingHook(const LayerStorages& storages, std::int64_t window, std::int64_t tokens)
    : storages_(storages), window_(window), tokens_(tokens), caches_(storages.tensors.size()) {}

at::Tensor GrowingHook::show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) {
  if (point == fisher::CachePoint::rotated) return takes(storages_, tensor, point) ? store_new(tensor, x) : x;
  Cache& cache = caches_[tensor];
  if (!cache.exact.defined()) cache.exact = at::empty({tokens_, x.size(1)}, x.options());
  const std::int64_t end = cache.shown + x.size(0);
  cache.exact.slice(0, cache.shown, end).copy_(x);
  cache.shown = end;
  const at::Tensor all = cache.exact.slice(0, 0, end);
  return takes(storages_, tensor, point) ? store_new(tensor, all) : all;
}

at::Tensor GrowingHook::store_new(std::size_t tensor, const at::Tensor& all) {
  Cache& cache = caches_[tensor];
  if (!cache.read.defined()) cache.read = at::empty({tokens_, all.size(1)}, all.options());
  const std::int64_t first = storages_.storages[tensor]->by_token() ? cache.stored : 0;
  const std::int64_t end = all.size(0);
  cache.read.slice(0, first, end)
      .copy_(store(storages_, tensor, window_, first, plain(all.slice(0, first))).first);
  cache.stored = end;
  return cache.read.slice(0, 0, end);
}

StorageError& StorageError::operator+=(const StorageError& other) {
  error += other.error;
  energy += other.energy;
  weighted_error += other.weighted_error;
  weighted_energy += other.weighted_energy;
  shared_attention += other.shared_attention;
  attentions += other.attentions;
  use += other.use;
  return *this;
}

MeasuringHook::MeasuringHook(const std::vector<LayerStorages>& methods,
                             const std::vector<std::vector<float>>& weights, std::int64_t window)
    : methods_(methods), weights_(weights), window_(window), shown_(weights.size()) {
  for (const LayerStorages& method : methods) errors_.emplace_back(method.storages.size());
}

at::Tensor MeasuringHook::show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) {
  (point == fisher::CachePoint::cached ? shown_[tensor].cached : shown_[tensor].rotated) = x;
  return x;
}

at::Tensor MeasuringHook::measure(std::size_t method, std::size_t tensor) {
  const TensorStorage* storage = methods_[method].storages[tensor].get();
  if (storage == nullptr) return {};
  const Shown& shown = shown_[tensor];
  const at::Tensor& taken = storage->point() == fisher::CachePoint::cached ? shown.cached : shown.rotated;
  if (!taken.defined()) return {};
  const at::Tensor x = plain(taken);
  const auto [read, use] = store(methods_[method], tensor, window_, 0, x);
  errors_[method][tensor] +=
      measure_error(numbers(x), numbers(read), static_cast<std::size_t>(x.size(1)), weights_[tensor]);
  errors_[method][tensor].use += use;
  return read;
}

void MeasuringHook::attends(const fisher::AttentionInputs& inputs) {
  std::optional<AttentionShares> exact;  // where a method stores these keys
  for (std::size_t m = 0; m < methods_.size(); ++m) {
    const at::Tensor read = measure(m, inputs.key);
    if (!read.defined()) continue;
    if (!exact) exact.emplace(inputs, inputs.keys);
    const at::Tensor keys = read.to(inputs.keys.device(), inputs.keys.scalar_type());
    const bool cached = methods_[m].storages[inputs.key]->point() == fisher::CachePoint::cached;
    const AttentionShares ours(inputs, cached ? inputs.rotate(keys) : keys.view(inputs.keys.sizes()));
    errors_[m][inputs.key].shared_attention += exact->shared_with(ours);
    errors_[m][inputs.key].attentions += exact->count();
  }
  shown_[inputs.key] = {};
}

std::vector<std::vector<StorageError>> MeasuringHook::take_errors() {
  for (std::size_t t = 0; t < shown_.size(); ++t)
    for (std::size_t m = 0; m < methods_.size(); ++m) (void)measure(m, t);
  return std::move(errors_);
}

}  // namespace kvcal::calib
