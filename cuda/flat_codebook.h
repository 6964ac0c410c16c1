// cuda/flat_codebook.h: writes and checks the block of bytes of flat_format.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cuda/kernels/codec_math.h"
#include "cuda/kernels/flat_format.h"

namespace kvcal::codec {

/// What the block says of a layer.
struct FlatLayer {
  std::uint32_t index = 0, kv_heads = 0, key_dim = 0, value_dim = 0;
  std::int64_t window = 0;
  std::vector<float> key_lower, key_upper;  ///< [kv_heads * key_dim]
  Datatype key, value;
  std::vector<float> key_scale = {}, key_zero = {};  ///< [kv_heads * key_dim], or empty: by the thresholds
  std::optional<double> key_outliers = {}, value_outliers = {};  ///< fractions; nullopt: the codebook's
  std::uint32_t value_rotation_block = 0;  ///< of values that are kept turned (hadamard.h); 0: as they are
};

struct FlatCodebook {
  std::uint32_t sinks = 0;
  bool value_per_head = false;
  double outlier_fraction = 0;
  std::string content_sha256, config_sha256, weights_sha256;  ///< 64 characters each, or empty
  std::vector<FlatLayer> layers;                              ///< at least one, by index
};

/// The same bytes for the same codebook, on every machine: of version 3 where values are turned, else of version 1 where all
/// tensors have the same bits and outliers. Throws base::InvalidInput naming the layer where sizes, bits or blocks disagree.
[[nodiscard]] std::vector<std::byte> flat_bytes(const FlatCodebook& codebook);

/// The header of a block, once it is known that all it names lies within: magic, version, sizes, offsets, alignment,
/// checksum. Throws base::InvalidInput saying what is wrong. block: aligned to 8 bytes.
[[nodiscard]] const KvcalFlatHeader& check_flat(std::span<const std::byte> block);

}  // namespace kvcal::codec
