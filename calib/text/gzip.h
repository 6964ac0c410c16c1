// calib/text/gzip.h: what a gzip file (RFC 1952) holds, with limits on what it may cost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/progress.h"

namespace kvcal::calib {

/// Checked while inflating, after every chunk, so that a file made to fill memory ends in an error.
struct InflateLimits {
  std::uint64_t bytes = std::uint64_t{8} << 30;  ///< inflated: more text than any sample is taken from
  /// Inflated bytes for each compressed one, once `ratio_from` bytes have come: deflate reaches 1032 with one byte
  /// repeated for ever, texts 3 to 10, logs that say the same line again 100.
  std::uint64_t ratio = 500;
  std::uint64_t ratio_from = std::uint64_t{64} << 20;
};

/// Whether the bytes begin as gzip does.
[[nodiscard]] bool is_gzip(std::span<const std::byte> bytes);

/// All members, one after the other, as gzip -d gives them; zero bytes may follow the last (padding of tapes). Throws
/// InvalidInput naming `what` and the way out: cut short, damaged (RFC 1952's CRC and size are checked), other bytes
/// after the end, beyond a limit (saying both limit and ratio).
[[nodiscard]] std::string inflate_gzip(std::span<const std::byte> bytes, const std::string& what,
                                       base::Progress& progress, const InflateLimits& limits = {});

}  // namespace kvcal::calib
