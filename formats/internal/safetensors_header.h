// formats/internal/safetensors_header.h: the JSON header of a safetensors file,
// parsed strictly, without a tree in memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "formats/safetensors.h"

namespace kvcal::formats {

/// One tensor as the header describes it: bytes [begin, end) of the data.
struct HeaderEntry {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<HeaderEntry> entries;  ///< in the order of the header
  SafetensorsMetadata metadata;
};

/// Throws InvalidInput naming the file, the tensor and what is wrong: not JSON, a name given twice, a key,
/// type or dtype that the format does not have, a size that disagrees with dtype and shape. Offsets are not
/// yet compared with the file.
[[nodiscard]] SafetensorsHeader parse_safetensors_header(std::string_view text,
                                                         const std::filesystem::path& file);

}  // namespace kvcal::formats
