// formats/internal/hdf5_guard.h: is every structure of an HDF5 image one that libhdf5 may be given?
//
// libhdf5 1.10 itself dies on damaged files (reads out of bounds, divides by zero, never ends). So our own walk
// over the raw bytes goes first, after the HDF5 File Format Specification 3.0. It follows what libhdf5 would
// follow, checks every address and length, visits no byte for two structures (so there are no cycles, and the
// work is bounded by the file's size) and knows few kinds of structure:
//
//   what kvcal writes                          superblock 3; object headers 2 (OHDR, OCHK) with their checksums;
//                                              links and attributes in the header; one chunk, Fletcher-32
//   what h5py adds when it edits such a file   object headers 1; group B-trees, SNOD and HEAP; chunk B-trees;
//                                              contiguous and compact data; GCOL, for text in attributes
//   what h5py writes anew by default, and      superblock 0, which has no checksum, and the root as in a SNOD;
//   h5repack                                   the same; old fill values and times of modification
//
// The chunks of a B-tree ascend, so none is there twice; its nodes name each other as libhdf5 will follow them.
// Everything else is refused: heaps of links or attributes, user blocks, other superblocks, filters and types.
// What text of variable length holds is together no more than the file; nor are paths more than four times it.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace kvcal::formats {

/// Throws InvalidInput naming the file (`name`), the object, the byte and what was found there: "a damaged or
/// truncated HDF5 file" where a structure contradicts itself or leaves the file, else "kvcal did not write it".
void check_hdf5_image(std::span<const std::byte> file, const std::string& name);

}  // namespace kvcal::formats
