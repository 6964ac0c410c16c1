#include "calib/validate/methods/record_storage.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"
#include "cuda/kernels/record_sizes.h"
#include "cuda/record_codec.h"
#include "cuda/record_kernels.h"

namespace kvcal::calib {
namespace {

KvcalRecordLayout layout_of(const RecordOptions& options) {
  const auto dim = static_cast<std::uint32_t>(options.dim);
  return codec::make_record_layout(options.datatype.bits, options.datatype.bits, dim, dim, kPageTokens,
                                   codec::default_key_slots(options.outliers, dim),
                                   codec::default_value_slots(options.outliers, dim, kPageTokens),
                                   options.value_rotation_block);
}

/// Keys or values of a layer in pages of their own; the other half of each record is not used and not counted.
class RecordStorage final : public TensorStorage {
 public:
  RecordStorage(const RecordOptions& options, bool keys, codec::KeyNormaliser thresholds)
      : keys_(keys),
        outliers_(options.outliers),
        layer_{options.heads,    std::move(thresholds), options.datatype,
               options.datatype, options.outliers,      options.sinks},
        layout_(layout_of(options)) {
    if (options.coder == RecordCoder::kernels)
      kernels_ = std::make_unique<codec::RecordKernels>(layer_, layout_);
  }

  [[nodiscard]] fisher::CachePoint point() const override { return fisher::CachePoint::cached; }
  [[nodiscard]] double outlier_fraction() const override { return outliers_; }
  [[nodiscard]] std::int64_t static_bytes() const override {
    const std::int64_t levels = std::int64_t{4} << layer_.key.bits;  // in float32
    if (!keys_) return levels;
    // Scale and zero in fp16, and where outliers are kept the two thresholds in float32.
    const std::int64_t channel = 4 + (outliers_ > 0 ? 8 : 0);
    return levels + static_cast<std::int64_t>(layer_.keys.channels()) * channel;
  }

  [[nodiscard]] std::int64_t expected_bytes(std::int64_t tokens) const override {
    codec::RecordPages pages;
    pages.layout = layout_;
    pages.kv_heads = layer_.kv_heads;
    pages.sinks = layer_.sinks;
    pages.tokens = static_cast<std::size_t>(tokens);
    pages.has_keys = keys_;
    pages.has_values = !keys_;
    return static_cast<std::int64_t>(pages.bytes());
  }

  StorageUse store(std::int64_t, std::span<const float> x, std::span<float> read) const override {
    const std::span<const float> none;
    const codec::RecordPages pages = encode(keys_ ? x : none, keys_ ? none : x);
    const KvcalCounters& met = pages.counters;
    if (met.not_finite + met.saturated > 0) {
      throw base::InvalidInput(
          base::concat("of the ", x.size(), " ", keys_ ? "keys" : "values", " to store ", met.not_finite,
                       " are not finite and ", met.saturated,
                       !keys_ && layout_.value_rotation_block > 0 ? ", once turned," : "",
                       " beyond fp16, whose largest is ", codec::kHalfMax));
    }
    decode(pages, keys_ ? read : std::span<float>(), keys_ ? std::span<float>() : read);
    const std::size_t row = x.size() / std::max<std::size_t>(1, pages.tokens);
    const std::size_t judged = (pages.tokens - std::min(pages.sinks, pages.tokens)) * row;
    return {static_cast<std::int64_t>(pages.bytes()), static_cast<std::int64_t>(x.size()),
            static_cast<std::int64_t>(judged),
            static_cast<std::int64_t>(keys_ ? met.key_outliers : met.value_outliers),
            static_cast<std::int64_t>(keys_ ? met.dropped_keys : met.dropped_values)};
  }

 private:
  [[nodiscard]] codec::RecordPages encode(std::span<const float> keys, std::span<const float> values) const {
    return kernels_ ? kernels_->encode(keys, values)
                    : codec::encode_records(keys, values, layer_, layout_, 1);
  }
  void decode(const codec::RecordPages& pages, std::span<float> keys, std::span<float> values) const {
    if (kernels_) return kernels_->decode(pages, keys, values);
    codec::decode_records(pages, layer_, keys, values, 1);
  }

  bool keys_;
  double outliers_;
  codec::RecordLayer layer_;
  KvcalRecordLayout layout_;
  std::unique_ptr<codec::RecordKernels> kernels_;
};

}  // namespace

std::string record_problem(const RecordOptions& options) {
  if (options.sinks > codec::kMostSinks) {
    return base::concat(options.sinks, " sinks; a record's page keeps up to ", codec::kMostSinks,
                        ": calibrate with fewer");
  }
  try {
    (void)layout_of(options);
  } catch (const base::InvalidInput& error) {
    return error.what();
  }
  return {};
}

std::unique_ptr<TensorStorage> key_record_storage(const RecordOptions& options,
                                                  codec::KeyNormaliser normaliser) {
  return std::make_unique<RecordStorage>(options, true, std::move(normaliser));
}

std::unique_ptr<TensorStorage> value_record_storage(const RecordOptions& options) {
  const std::vector<float> unused(options.heads * options.dim);
  return std::make_unique<RecordStorage>(options, false,
                                         codec::KeyNormaliser(unused, unused, options.outliers));
}

}  // namespace kvcal::calib
