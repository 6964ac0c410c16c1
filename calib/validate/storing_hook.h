// calib/validate/storing_hook.h: the hooks through which methods meet a model: one replaces what a layer
// caches by what a method makes of it, the other measures what each method would make of it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "calib/validate/cache_method.h"
#include "fisher/block.h"

namespace kvcal::calib {

/// A method's storages of one layer, in the order of the layer's tensors. Null: kept as it is.
struct LayerStorages {
  std::string method;
  int layer = 0;
  std::vector<formats::CachedTensor> tensors;
  std::vector<std::unique_ptr<TensorStorage>> storages;
};

[[nodiscard]] LayerStorages layer_storages(const std::string& name, const CacheMethod& method, int layer,
                                           const std::vector<formats::CachedTensor>& tensors);

/// Attention reads what the method's storage gives back. One for each forward of a window.
class StoringHook final : public fisher::CacheHook {
 public:
  /// storages outlive the hook; only: the one tensor that is stored, -1: all.
  StoringHook(const LayerStorages& storages, std::int64_t window, int only = -1)
      : storages_(storages), window_(window), only_(only) {}
  /// Throws InvalidInput naming method, layer, tensor and window, and what the storage says.
  [[nodiscard]] at::Tensor show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) override;

 private:
  const LayerStorages& storages_;
  std::int64_t window_;
  int only_;
};

/// How far what came back lies from what was stored: sums over tokens and channels, in double.
struct StorageError {
  double error = 0, energy = 0;                    ///< of (x - q)^2 and x^2
  double weighted_error = 0, weighted_energy = 0;  ///< the same, each channel times its sensitivity
  StorageUse use;

  StorageError& operator+=(const StorageError& other);
};

/// The errors of several methods on the activations of one layer, which stay as they are.
class MeasuringHook final : public fisher::CacheHook {
 public:
  /// methods: of one layer, outliving the hook; weights: for each tensor [channels], or empty.
  MeasuringHook(const std::vector<LayerStorages>& methods, const std::vector<std::vector<float>>& weights,
                std::int64_t window);
  [[nodiscard]] at::Tensor show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) override;

  /// [methods][tensors]
  [[nodiscard]] const std::vector<std::vector<StorageError>>& errors() const { return errors_; }

 private:
  const std::vector<LayerStorages>& methods_;
  const std::vector<std::vector<float>>& weights_;
  std::int64_t window_;
  std::vector<std::vector<StorageError>> errors_;
};

}  // namespace kvcal::calib
