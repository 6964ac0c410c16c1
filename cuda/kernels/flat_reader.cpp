#include "cuda/kernels/flat_reader.h"

#include <bit>
#include <cstring>

#include "cuda/kernels/rotation.h"
#include "cuda/kernels/text.h"

namespace kvcal::codec {
namespace {

static_assert(std::endian::native == std::endian::little, "the block is read as it lies in memory");
static_assert(sizeof(KvcalFlatHeader) == 256 && sizeof(KvcalFlatLayer) == 104);

/// An array that a layer names.
struct Array {
  const char* name;
  std::uint64_t offset, bytes;
};

class Checker {
 public:
  Checker(std::span<const std::byte> block, const KvcalFlatHeader& header) : block_(block), header_(header) {}

  [[nodiscard]] std::string problem() const {
    if (!lies_within(header_.layers_offset, std::uint64_t{header_.layers} * header_.layer_bytes))
      return outside("the layers", header_.layers_offset);
    for (std::uint32_t i = 0; i < header_.layers; ++i) {
      std::string found = problem_of(flat_layer(block_.data(), i));
      if (!found.empty()) return found;
    }
    return {};
  }

 private:
  [[nodiscard]] std::string problem_of(const KvcalFlatLayer& layer) const {
    constexpr std::uint32_t kMost = 1 << 20;
    if (layer.kv_heads > kMost || layer.key_dim > kMost || layer.value_dim > kMost)
      return text("has wrong sizes: layer ", layer.index, " has ", layer.kv_heads,
                  " kv heads and head dimensions ", layer.key_dim, " and ", layer.value_dim,
                  "; each is at most ", kMost);
    const std::uint64_t channels = std::uint64_t{layer.kv_heads} * layer.key_dim;
    for (const std::uint32_t bits : {layer.key_bits, layer.value_bits})
      if (bits < 2 || bits > 4)
        return text("has codes of ", bits, " bits in layer ", layer.index, "; expected 2, 3 or 4");
    if (!is_rotation_block(layer.value_rotation_block, layer.value_dim))
      return text("turns ", layer.value_rotation_block, " channels together in layer ", layer.index,
                  "; expected a power of two that divides ", layer.value_dim);
    const std::uint64_t key_levels = std::uint64_t{1} << layer.key_bits;
    const std::uint64_t value_levels = std::uint64_t{1} << layer.value_bits;
    const std::uint64_t thresholds = layer.key_outliers > 0 ? 4 * channels : 0;
    for (const Array& array :
         {Array{"key_affines", layer.key_affines, 4 * channels},
          Array{"key_lower", layer.key_lower, thresholds}, Array{"key_upper", layer.key_upper, thresholds},
          Array{"key_midpoints", layer.key_midpoints, 4 * (key_levels - 1)},
          Array{"key_levels", layer.key_levels, 4 * key_levels},
          Array{"value_midpoints", layer.value_midpoints, 4 * (value_levels - 1)},
          Array{"value_levels", layer.value_levels, 4 * value_levels}}) {
      // Without outliers the thresholds are not there.
      const bool absent = array.bytes == 0 && array.offset == 0;
      if (!absent && !lies_within(array.offset, array.bytes))
        return outside(text("layer ", layer.index, ", ", array.name), array.offset);
    }
    return {};
  }

  [[nodiscard]] bool lies_within(std::uint64_t offset, std::uint64_t bytes) const {
    return offset % KVCAL_FLAT_ALIGNMENT == 0 && offset >= header_.header_bytes && offset <= block_.size() &&
           bytes <= block_.size() - offset;
  }
  [[nodiscard]] std::string outside(const std::string& what, std::uint64_t offset) const {
    return text("has a wrong offset: ", what, " at ", offset, " does not lie in the block of ", block_.size(),
                " bytes");
  }

  std::span<const std::byte> block_;
  const KvcalFlatHeader& header_;
};

}  // namespace

std::uint64_t flat_checksum(std::span<const std::byte> bytes) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const std::byte byte : bytes) hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3U;
  return hash;
}

std::size_t flat_layer_bytes(std::uint32_t version) {
  switch (version) {
    case KVCAL_FLAT_VERSION:
      return KVCAL_FLAT_LAYER_BYTES;
    case KVCAL_FLAT_VERSION_MIXED:
      return KVCAL_FLAT_LAYER_BYTES_MIXED;
    case KVCAL_FLAT_VERSION_TURNED:
      return sizeof(KvcalFlatLayer);
    default:
      return 0;
  }
}

KvcalFlatLayer flat_layer(const std::byte* block, std::uint32_t layer) {
  const auto& header = *reinterpret_cast<const KvcalFlatHeader*>(block);
  const std::byte* from = block + header.layers_offset + std::uint64_t{layer} * header.layer_bytes;
  KvcalFlatLayer flat{};
  std::memcpy(&flat, from, flat_layer_bytes(header.version));
  if (header.version != KVCAL_FLAT_VERSION) return flat;
  flat.key_bits = flat.value_bits = header.bits;
  flat.key_outliers = flat.value_outliers = header.outlier_fraction;
  return flat;
}

std::string flat_problem(std::span<const std::byte> block) {
  if (block.size() < sizeof(KvcalFlatHeader) ||
      std::memcmp(block.data(), KVCAL_FLAT_MAGIC, sizeof(KvcalFlatHeader::magic)) != 0)
    return text("is no flat codebook: it does not begin with ", KVCAL_FLAT_MAGIC);
  const auto& header = *reinterpret_cast<const KvcalFlatHeader*>(block.data());
  const std::size_t layer_bytes = flat_layer_bytes(header.version);
  if (layer_bytes == 0) {
    return text("is a flat codebook of version ", header.version, "; expected ", KVCAL_FLAT_VERSION, " to ",
                KVCAL_FLAT_VERSION_TURNED, ": export it again");
  }
  const bool has_bits =
      header.version == KVCAL_FLAT_VERSION ? header.bits >= 2 && header.bits <= 4 : header.bits == 0;
  if (header.file_bytes != block.size())
    return text("is not whole: ", block.size(), " of ", header.file_bytes, " bytes");
  if (header.header_bytes < sizeof(KvcalFlatHeader) || header.header_bytes > block.size() ||
      header.layer_bytes < layer_bytes || header.layer_bytes % 8 != 0 || !has_bits)
    return "has a header that contradicts itself";
  if (flat_checksum(block.subspan(header.header_bytes)) != header.checksum)
    return "was changed or damaged: its checksum does not match";
  return Checker(block, header).problem();
}

}  // namespace kvcal::codec
