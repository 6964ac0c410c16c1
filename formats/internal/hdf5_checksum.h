// formats/internal/hdf5_checksum.h: the checksum of HDF5's metadata.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvcal::formats {

/// HDF5's checksum of its structures: Bob Jenkins's lookup3 (public domain), hashlittle with 0.
[[nodiscard]] std::uint32_t hdf5_checksum(std::span<const std::byte> bytes);

}  // namespace kvcal::formats
