// formats/internal/hdf5_guard_group.h: groups as HDF5 1.6 wrote them, and h5py still does: a B-tree of tables of
// symbols (SNOD), whose names lie in a local heap (HEAP).
#pragma once

#include <cstdint>
#include <vector>

#include "formats/internal/hdf5_guard_messages.h"

namespace kvcal::formats {

/// How much the nodes have room for. Superblock 0 says it; elsewhere it is this.
struct GuardGroupNodes {
  std::uint64_t symbols = 8;    ///< in a table
  std::uint64_t children = 32;  ///< of a node of the B-tree
};

/// Claims the group's structures, and gives its links.
[[nodiscard]] std::vector<GuardLink> read_guarded_group(GuardImage& image, const GuardSymbolTable& table,
                                                        GuardGroupNodes nodes);

}  // namespace kvcal::formats
