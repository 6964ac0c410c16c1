// calib/cache_plan.h: what a KV cache weighs: its bytes at a context by method, beside the weights, and which context
// fits (docs/memory.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "calib/cache_shape.h"

namespace kvcal::calib {

struct CachePlanOptions {
  std::int64_t context = 131072;  ///< tokens of each sequence
  std::int64_t batch = 1;         ///< sequences
  int gpus = 1;                   ///< kv heads and weights are shared out among them (tensor parallelism)
  std::optional<std::int64_t> gpu_memory_bytes;  ///< of each, for weights and cache
  std::vector<std::string> methods;              ///< as validate's; empty: fp, fp8 and the shape's datatypes
};

/// A method's, for all sequences.
struct MethodSize {
  std::string name;
  double bits_per_value = 0;  ///< all that the sequences store; of a method in pages, its pages
  std::int64_t cache_bytes = 0;
  std::int64_t static_bytes = 0;  ///< tables of the model
  /// Of the same cache as KVQuant's tables count it: codes, and 4 bytes for each outlier. Nothing for other methods.
  std::optional<double> kvquant_bytes;
  std::int64_t cache_bytes_per_gpu =
      0;  ///< with tables; where there are fewer kv heads than GPUs, they are held twice
  std::optional<std::int64_t> total_bytes_per_gpu;  ///< with weights, where their size is known
  // Where --gpu-memory was given and the weights are known:
  std::optional<std::int64_t> margin_bytes;     ///< what is left on each GPU; negative: what is missing
  std::optional<std::int64_t> largest_context;  ///< that fits, of every sequence; 0: not even the weights fit
  bool any_context = false;  ///< every context up to 2^31 - 1 fits: windows bound the cache, say

  [[nodiscard]] std::optional<bool> fits() const;
};

struct CachePlan {
  CacheShape shape;
  WeightsSize weights;
  CachePlanOptions options;
  std::int64_t page_tokens = 0;  ///< of methods in pages
  std::vector<MethodSize> methods;
  std::vector<std::string> warnings;
};

/// The sizes are those of what each method stores (TensorStorage::expected_bytes), with as many outliers as their
/// fraction says. Throws base::WrongUsage for a method that is none, base::InvalidInput where one has no place for the
/// model's tensors, or a size overflows.
[[nodiscard]] CachePlan plan_cache(const CacheModel& model, const CachePlanOptions& options);

}  // namespace kvcal::calib
