// cuda/kernels/flat_reader.h: whether a block of bytes is a flat codebook (flat_format.h), before anything of it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "cuda/kernels/flat_format.h"

namespace kvcal::codec {

/// 64-bit FNV-1a.
[[nodiscard]] std::uint64_t flat_checksum(std::span<const std::byte> bytes);

/// The bytes of a layer that a version has; 0 for one that there is not.
[[nodiscard]] std::size_t flat_layer_bytes(std::uint32_t version);

/// A layer of a block of any version, with the bits and fractions of its tensors. layer < the header's layers, of a block in
/// which flat_problem() found nothing wrong.
[[nodiscard]] KvcalFlatLayer flat_layer(const std::byte* block, std::uint32_t layer);

/// What is wrong with a block, as the end of a sentence about it: magic, version, sizes, offsets, alignment, checksum.
/// Empty: all that it names lies within it. block: aligned to 8 bytes.
[[nodiscard]] std::string flat_problem(std::span<const std::byte> block);

}  // namespace kvcal::codec
