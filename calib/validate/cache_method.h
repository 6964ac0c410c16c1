// calib/validate/cache_method.h: a way of storing a KV cache, as validation judges it.
//
// A family of methods is one file in calib/validate/methods/ and one line in methods.inc there
// (docs/methods.md says how to add one).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calib/validate/method_names.h"
#include "fisher/block.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// What storing a tensor of a sequence took. Adds up over sequences, tensors and layers.
struct StorageUse {
  std::int64_t bytes = 0;     ///< all that is stored of the sequence; tables of the layer apart
  std::int64_t values = 0;    ///< numbers given: tokens times channels
  std::int64_t judged = 0;    ///< those of them that could have been outliers: sinks cannot
  std::int64_t outliers = 0;  ///< those that were
  std::int64_t dropped = 0;   ///< of these: for which there was no room, where room is limited

  StorageUse& operator+=(const StorageUse& other) {
    bytes += other.bytes;
    values += other.values;
    judged += other.judged;
    outliers += other.outliers;
    dropped += other.dropped;
    return *this;
  }
  bool operator==(const StorageUse&) const = default;
};

/// How one tensor of one layer is stored. Used by several threads at once.
class TensorStorage {
 public:
  virtual ~TensorStorage() = default;
  /// Where on its way to attention the tensor is taken.
  [[nodiscard]] virtual fisher::CachePoint point() const = 0;
  /// Whether what a token comes back as depends on itself and its place alone, not on those around it.
  [[nodiscard]] virtual bool by_token() const { return false; }
  /// x: [tokens, channels], finite: a sequence from its token `first` on; 0, its start, unless by_token().
  /// read, of the same size: what it comes back as. Runs on the calling thread. Throws InvalidInput naming token,
  /// counted from `first`, and channel where a number cannot be stored.
  virtual StorageUse store(std::int64_t first, std::span<const float> x, std::span<float> read) const = 0;
  /// StorageUse::bytes of a sequence of so many tokens with as many outliers as the calibration kept apart: what
  /// store() takes, but for chance. tokens >= 0.
  [[nodiscard]] virtual std::int64_t expected_bytes(std::int64_t tokens) const = 0;
  /// What the layer needs of tables, once for all sequences.
  [[nodiscard]] virtual std::int64_t static_bytes() const { return 0; }
  /// The share of numbers that the calibration kept apart: what the outliers met are set beside.
  [[nodiscard]] virtual double outlier_fraction() const { return 0; }
};

/// Where methods that store keys after RoPE take a tensor: those with thresholds by channel rotated, others as
/// they are cached.
[[nodiscard]] inline fisher::CachePoint point_after_rope(const formats::CachedTensor& tensor) {
  return tensor.thresholds == formats::ThresholdScope::channel ? fisher::CachePoint::rotated
                                                               : fisher::CachePoint::cached;
}

/// A way of storing a cache: a storage for each tensor of each layer.
class CacheMethod {
 public:
  virtual ~CacheMethod() = default;
  /// Null: the tensor is kept as it is. Throws InvalidInput where the method has none for it: a layer or a
  /// tensor that the codebook lacks, channels that do not divide into the method's groups.
  [[nodiscard]] virtual std::unique_ptr<TensorStorage> storage(int layer,
                                                               const formats::CachedTensor& tensor) const = 0;
};

/// Methods of one kind, told apart by their names.
struct MethodFamily {
  MethodNames names;
  /// Null where the name is none of the family's. codebook: null where there is none; outlives the method.
  /// Throws InvalidInput where the name is the family's and the codebook cannot serve it, or is missing:
  /// naming the method and what there is.
  std::unique_ptr<CacheMethod> (*make)(std::string_view name, const formats::Codebook* codebook);
  /// All that this codebook serves, and of these the ones that a run judges unless told otherwise.
  std::vector<std::string> (*served)(const formats::Codebook* codebook);
  std::vector<std::string> (*by_default)(const formats::Codebook* codebook);
};

/// All known, in the order of methods.inc.
[[nodiscard]] const std::vector<MethodFamily>& method_families();

/// A method by its name; null for kFullPrecision. Throws WrongUsage for a name that no family knows, with
/// those that are known and the nearest; InvalidInput as MethodFamily::make.
[[nodiscard]] std::unique_ptr<CacheMethod> make_method(std::string_view name,
                                                       const formats::Codebook* codebook);

/// kFullPrecision and what the families judge by default.
[[nodiscard]] std::vector<std::string> default_methods(const formats::Codebook* codebook);
/// kFullPrecision and all that can be had with this codebook.
[[nodiscard]] std::vector<std::string> served_methods(const formats::Codebook* codebook);

}  // namespace kvcal::calib
