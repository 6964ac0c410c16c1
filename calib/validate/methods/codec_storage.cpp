#include "calib/validate/methods/codec_storage.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace kvcal::calib {
namespace {

class CodecStorage : public TensorStorage {
 public:
  CodecStorage(const CodecOptions& options, double outliers) : options_(options), outliers_(outliers) {}

  [[nodiscard]] fisher::CachePoint point() const override { return options_.point; }
  [[nodiscard]] bool by_token() const override { return true; }
  [[nodiscard]] double outlier_fraction() const override { return outliers_; }
  [[nodiscard]] std::int64_t static_bytes() const override { return options_.table_bytes; }

 protected:
  [[nodiscard]] const codec::Datatype& datatype() const { return options_.datatype; }
  [[nodiscard]] codec::RowOptions rows(std::int64_t first) const {
    const auto passed = static_cast<std::size_t>(first);
    return {.sinks = options_.sinks - std::min(options_.sinks, passed), .threads = 1};
  }
  // Without affines and outliers.
  [[nodiscard]] codec::RowsSize size_of(std::int64_t tokens, std::size_t channels) const {
    const auto all = static_cast<std::size_t>(tokens);
    const std::size_t sinks = std::min(options_.sinks, all);
    return {.bits = datatype().bits,
            .rows = all - sinks,
            .sinks = sinks,
            .channels = channels,
            .keeps_outliers = outliers_ > 0};
  }
  [[nodiscard]] static StorageUse use_of(const codec::PackedRows& packed) {
    return {static_cast<std::int64_t>(packed.bytes()),
            static_cast<std::int64_t>(packed.tokens * packed.channels),
            static_cast<std::int64_t>(packed.rows() * packed.channels),
            static_cast<std::int64_t>(packed.outliers.size())};
  }

 private:
  CodecOptions options_;
  double outliers_;
};

class ChannelStorage final : public CodecStorage {
 public:
  ChannelStorage(const CodecOptions& options, codec::KeyNormaliser normaliser, double outliers)
      : CodecStorage(options, outliers), normaliser_(std::move(normaliser)) {}

  StorageUse store(std::int64_t first, std::span<const float> x, std::span<float> read) const override {
    const codec::PackedRows packed = codec::encode_keys(x, normaliser_, datatype(), rows(first));
    codec::decode_keys(packed, normaliser_, datatype(), read, 1);
    return use_of(packed);
  }

  [[nodiscard]] std::int64_t expected_bytes(std::int64_t tokens) const override {
    codec::RowsSize size = size_of(tokens, normaliser_.channels());
    const auto numbers = static_cast<double>(size.rows * size.channels);
    size.outliers = static_cast<std::size_t>(std::llround(outlier_fraction() * numbers));
    return static_cast<std::int64_t>(size.bytes());
  }

  [[nodiscard]] std::int64_t static_bytes() const override {
    // Scale and zero in fp16, and where outliers are kept the two thresholds in float32.
    const std::int64_t channel =
        static_cast<std::int64_t>(sizeof(codec::Affine)) + (outlier_fraction() > 0 ? 8 : 0);
    return CodecStorage::static_bytes() + static_cast<std::int64_t>(normaliser_.channels()) * channel;
  }

 private:
  codec::KeyNormaliser normaliser_;
};

class TokenStorage final : public CodecStorage {
 public:
  TokenStorage(const CodecOptions& options, std::size_t channels, const codec::ValueOptions& value)
      : CodecStorage(options, value.outlier_fraction), channels_(channels), value_(value) {}

  StorageUse store(std::int64_t first, std::span<const float> x, std::span<float> read) const override {
    const codec::PackedRows packed = codec::encode_values(x, channels_, value_, datatype(), rows(first));
    codec::decode_values(packed, datatype(), read, 1);
    return use_of(packed);
  }

  [[nodiscard]] std::int64_t expected_bytes(std::int64_t tokens) const override {
    codec::RowsSize size = size_of(tokens, channels_);
    size.affines = size.rows * static_cast<std::size_t>(value_.groups);
    size.outliers = size.rows * value_.outliers(channels_);
    return static_cast<std::int64_t>(size.bytes());
  }

 private:
  std::size_t channels_;
  codec::ValueOptions value_;
};

}  // namespace

codec::Datatype codec_datatype(const formats::Datatype& datatype, bool qnorm) {
  if (!qnorm) return codec::make_datatype(datatype.centroids);
  return codec::make_datatype(datatype.centroids, {static_cast<float>(datatype.qnorm_scale),
                                                   static_cast<float>(datatype.qnorm_offset)});
}

codec::KeyNormaliser key_normaliser(const formats::OutlierSet& outliers, const formats::Datatype& datatype) {
  if (!datatype.has_ranges()) return {outliers.lower, outliers.upper, outliers.fraction};
  return {outliers.lower, outliers.upper, outliers.fraction, datatype.scale, datatype.zero};
}

std::unique_ptr<TensorStorage> channel_storage(const CodecOptions& options, codec::KeyNormaliser normaliser,
                                               double outliers) {
  return std::make_unique<ChannelStorage>(options, std::move(normaliser), outliers);
}

std::unique_ptr<TensorStorage> token_storage(const CodecOptions& options, std::size_t channels,
                                             const codec::ValueOptions& value) {
  return std::make_unique<TokenStorage>(options, channels, value);
}

}  // namespace kvcal::calib
