// calib/validate/storing_hook.h: the hooks through which methods meet a model: two replace what a layer caches
// by what a method makes of it, in one piece or as it grows, the third measures what each method would make of it.
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

/// A cache that grows: attention reads what the storage gives back for all tokens so far, stored anew with each
/// one where its method is not by token. One for each window and layer; shown first the prompt, then a token at a
/// time.
class GrowingHook final : public fisher::CacheHook {
 public:
  /// storages outlive the hook; tokens: how many there will be.
  GrowingHook(const LayerStorages& storages, std::int64_t window, std::int64_t tokens);
  /// Throws as StoringHook::show().
  [[nodiscard]] at::Tensor show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) override;

 private:
  // Room for [tokens, channels]; those shown, and those of them that were stored.
  struct Cache {
    at::Tensor exact, read;
    std::int64_t shown = 0, stored = 0;
  };
  [[nodiscard]] at::Tensor store_new(std::size_t tensor, const at::Tensor& all);

  const LayerStorages& storages_;
  std::int64_t window_, tokens_;
  std::vector<Cache> caches_;
};

/// How far what came back lies from what was stored: sums over tokens and channels, in double.
struct StorageError {
  double error = 0, energy = 0;                    ///< of (x - q)^2 and x^2
  double weighted_error = 0, weighted_energy = 0;  ///< the same, each channel times its sensitivity
  /// Of keys, summed over some queries of every head: the share of the attention that full precision gives a
  /// token and the method does, too, sum of min(a, a') over tokens.
  double shared_attention = 0;
  std::int64_t attentions = 0;
  StorageUse use;

  StorageError& operator+=(const StorageError& other);
};

/// The errors of several methods on the activations of one layer, which stay as they are. Keys are measured when
/// attention is shown, so that one method's are held at a time.
class MeasuringHook final : public fisher::CacheHook {
 public:
  /// methods: of one layer, outliving the hook; weights: for each tensor [channels], or empty.
  MeasuringHook(const std::vector<LayerStorages>& methods, const std::vector<std::vector<float>>& weights,
                std::int64_t window);
  [[nodiscard]] at::Tensor show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) override;
  void attends(const fisher::AttentionInputs& inputs) override;

  /// [methods][tensors], after the forward.
  [[nodiscard]] std::vector<std::vector<StorageError>> take_errors();

 private:
  struct Shown {
    at::Tensor cached, rotated;
  };
  // What the method makes of a tensor; undefined where it leaves it. Adds to its error.
  [[nodiscard]] at::Tensor measure(std::size_t method, std::size_t tensor);

  const std::vector<LayerStorages>& methods_;
  const std::vector<std::vector<float>>& weights_;
  std::int64_t window_;
  std::vector<std::vector<StorageError>> errors_;
  std::vector<Shown> shown_;  // what was not measured yet
};

}  // namespace kvcal::calib
