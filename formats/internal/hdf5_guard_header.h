// formats/internal/hdf5_guard_header.h: where the messages of an object's header lie, in all its blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/internal/hdf5_guard_image.h"

namespace kvcal::formats {

/// A message's body.
struct GuardMessage {
  std::uint64_t type = 0;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct GuardHeader {
  bool old = false;  ///< version 1: no checksums, messages padded to 8 bytes
  std::vector<GuardMessage> messages;
};

/// Claims the header and its continuation blocks.
[[nodiscard]] GuardHeader read_guarded_header(GuardImage& image, std::uint64_t address);

}  // namespace kvcal::formats
