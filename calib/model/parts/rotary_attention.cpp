#include "calib/model/parts/rotary_attention.h"

#include <ATen/ATen.h>

#include "calib/model/parts/attention.h"

namespace kvcal::calib {
namespace {

// Places in the list that cache() returns.
constexpr std::size_t kKey = 0;
constexpr std::size_t kValue = 1;

// Of the newest tokens.
RotaryTable last(const RotaryTable& table, std::int64_t tokens) {
  const std::int64_t first = table.cosines.size(0) - tokens;
  return first == 0 ? table : RotaryTable{table.cosines.slice(0, first), table.sines.slice(0, first)};
}

}  // namespace

at::Tensor RotaryAttention::forward(const at::Tensor& x, fisher::CacheHook* hook) const {
  using fisher::CachePoint;
  // Keys, values, queries: the graph adds their gradients with respect to x in the reverse of the order in
  // which they are made, and another order would round otherwise.
  at::Tensor cached_keys = keys(x);
  at::Tensor cached_values = values(x);
  if (hook != nullptr) {
    cached_keys = hook->show(kKey, CachePoint::cached, cached_keys);
    cached_values = hook->show(kValue, CachePoint::cached, cached_values);
  }
  const RotaryTable table = rotary->table(cached_keys.size(0));
  const at::Tensor q =
      rotate(queries(x).unflatten(1, {layer.num_attention_heads, layer.head_dim}), last(table, x.size(0)));
  const auto rotate_keys = [&](const at::Tensor& cached) {
    return rotate(cached.unflatten(1, {layer.num_kv_heads, layer.head_dim}), table);
  };
  at::Tensor k = rotate_keys(cached_keys);
  if (hook != nullptr) {
    k = hook->show(kKey, CachePoint::rotated, k.flatten(1))
            .unflatten(1, {layer.num_kv_heads, layer.head_dim});
    hook->attends({kKey, q, k, layer.window, rotate_keys});
  }
  const at::Tensor v = cached_values.unflatten(1, {layer.num_kv_heads, layer.value_dim});
  return output(causal_attention(q, k, v, layer.window));
}

std::vector<formats::CachedTensor> RotaryAttention::cache(const LayerConfig& config) {
  using formats::ThresholdScope;
  std::vector<formats::CachedTensor> tensors(2);
  tensors[kKey] = {"key", config.num_kv_heads, config.head_dim, ThresholdScope::channel};
  tensors[kValue] = {"value", config.num_kv_heads, config.value_dim, ThresholdScope::token};
  return tensors;
}

}  // namespace kvcal::calib
