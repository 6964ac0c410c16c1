// calib/validate/methods/codec_storage.h: storages through the packed codec (cuda/row_codec.h), whatever their levels
// and where their thresholds come from.
#pragma once

#include <cstdint>
#include <memory>

#include "calib/validate/cache_method.h"
#include "cuda/row_codec.h"

namespace kvcal::calib {

/// A codebook's datatype as the codec has it.
[[nodiscard]] codec::Datatype codec_datatype(const formats::Datatype& datatype, bool qnorm);
/// And how its keys are normalised: by ranges of its own where it has them, else by the thresholds.
[[nodiscard]] codec::KeyNormaliser key_normaliser(const formats::OutlierSet& outliers,
                                                  const formats::Datatype& datatype);

struct CodecOptions {
  codec::Datatype datatype;
  fisher::CachePoint point = fisher::CachePoint::cached;
  std::size_t sinks = 0;         ///< first tokens of a sequence, kept in fp16
  std::int64_t table_bytes = 0;  ///< of the datatype, where the layer must hold it
};

/// Thresholds by channel, and the share of numbers beyond them that is kept apart.
[[nodiscard]] std::unique_ptr<TensorStorage> channel_storage(const CodecOptions& options,
                                                             codec::KeyNormaliser normaliser,
                                                             double outliers);

/// Thresholds found in each token, for each of its groups.
[[nodiscard]] std::unique_ptr<TensorStorage> token_storage(const CodecOptions& options, std::size_t channels,
                                                           const codec::ValueOptions& value);

}  // namespace kvcal::calib
