#include "cuda/flat_codebook.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "cuda/vector_codec.h"

namespace kvcal::codec {
namespace {

static_assert(std::endian::native == std::endian::little, "the block is written as it lies in memory");
static_assert(sizeof(KvcalFlatHeader) == 256 && sizeof(KvcalFlatLayer) == 80 && sizeof(Affine) == 4);

using base::concat;
using base::InvalidInput;

std::uint64_t fnv1a(std::span<const std::byte> bytes) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const std::byte byte : bytes) hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3U;
  return hash;
}

std::uint64_t aligned(std::uint64_t bytes) {
  constexpr std::uint64_t kAlignment = KVCAL_FLAT_ALIGNMENT;
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// Arrays one after the other, each at a multiple of the alignment.
class Block {
 public:
  explicit Block(std::size_t first_bytes) : bytes_(aligned(first_bytes)) {}

  template <typename T>
  [[nodiscard]] std::uint64_t append(std::span<const T> numbers) {
    const std::uint64_t offset = bytes_.size();
    bytes_.resize(aligned(offset + numbers.size_bytes()));
    std::memcpy(bytes_.data() + offset, numbers.data(), numbers.size_bytes());
    return offset;
  }
  void put(std::uint64_t offset, const void* from, std::size_t bytes) {
    std::memcpy(bytes_.data() + offset, from, bytes);
  }
  [[nodiscard]] std::vector<std::byte> take() { return std::move(bytes_); }
  [[nodiscard]] std::span<const std::byte> from(std::size_t offset) const {
    return std::span(bytes_).subspan(offset);
  }
  [[nodiscard]] std::uint64_t size() const { return bytes_.size(); }

 private:
  std::vector<std::byte> bytes_;
};

void put_text(char (&field)[64], const std::string& text, const char* name) {
  if (!text.empty() && text.size() != sizeof(field))
    throw InvalidInput(concat(name, " has ", text.size(), " characters; expected 64"));
  std::copy(text.begin(), text.end(), field);
}

void check_layer(const FlatLayer& layer, int bits) {
  const std::size_t channels = std::size_t{layer.kv_heads} * layer.key_dim;
  if (layer.key_lower.size() != channels || layer.key_upper.size() != channels) {
    throw InvalidInput(concat("layer ", layer.index, ": ", layer.key_lower.size(), " and ",
                              layer.key_upper.size(), " thresholds of ", channels, " channels"));
  }
  if (layer.key.bits != bits || layer.value.bits != bits) {
    throw InvalidInput(concat("layer ", layer.index, ": datatypes of ", layer.key.bits, " and ",
                              layer.value.bits, " bits; expected ", bits));
  }
}

KvcalFlatLayer append_layer(Block& block, const FlatLayer& layer, double outliers) {
  const KeyNormaliser normaliser(layer.key_lower, layer.key_upper, outliers);
  KvcalFlatLayer flat{};
  flat.index = layer.index;
  flat.kv_heads = layer.kv_heads;
  flat.key_dim = layer.key_dim;
  flat.value_dim = layer.value_dim;
  flat.window = layer.window;
  flat.key_affines = block.append(normaliser.affines());
  if (outliers > 0) {
    flat.key_lower = block.append(std::span<const float>(layer.key_lower));
    flat.key_upper = block.append(std::span<const float>(layer.key_upper));
  }
  const std::size_t levels = std::size_t{1} << layer.key.bits;
  const auto append = [&](const float* numbers, std::size_t count) {
    return block.append(std::span<const float>(numbers, count));
  };
  flat.key_midpoints = append(layer.key.midpoints, levels - 1);
  flat.key_levels = append(layer.key.levels, levels);
  flat.value_midpoints = append(layer.value.midpoints, levels - 1);
  flat.value_levels = append(layer.value.levels, levels);
  return flat;
}

/// Throws where an array does not lie in the block.
class Checker {
 public:
  Checker(std::span<const std::byte> block, const KvcalFlatHeader& header) : block_(block), header_(header) {}

  void check_layers() const {
    check(header_.layers_offset, std::uint64_t{header_.layers} * header_.layer_bytes, "the layers");
    for (std::uint32_t i = 0; i < header_.layers; ++i) {
      KvcalFlatLayer layer;
      std::memcpy(&layer, block_.data() + header_.layers_offset + std::uint64_t{i} * header_.layer_bytes,
                  sizeof(layer));
      check_arrays(layer);
    }
  }

 private:
  void check_arrays(const KvcalFlatLayer& layer) const {
    constexpr std::uint32_t kMost = 1 << 20;
    if (layer.kv_heads > kMost || layer.key_dim > kMost || layer.value_dim > kMost)
      throw InvalidInput(concat("layer ", layer.index, ": its sizes are out of range"));
    const std::uint64_t channels = std::uint64_t{layer.kv_heads} * layer.key_dim;
    const std::uint64_t levels = std::uint64_t{1} << header_.bits;
    const std::string place = concat("layer ", layer.index, ", ");
    check(layer.key_affines, 4 * channels, place + "key_affines");
    if (header_.outlier_fraction > 0) {
      check(layer.key_lower, 4 * channels, place + "key_lower");
      check(layer.key_upper, 4 * channels, place + "key_upper");
    }
    check(layer.key_midpoints, 4 * (levels - 1), place + "key_midpoints");
    check(layer.key_levels, 4 * levels, place + "key_levels");
    check(layer.value_midpoints, 4 * (levels - 1), place + "value_midpoints");
    check(layer.value_levels, 4 * levels, place + "value_levels");
  }

  void check(std::uint64_t offset, std::uint64_t bytes, const std::string& what) const {
    if (offset % KVCAL_FLAT_ALIGNMENT != 0 || offset < header_.header_bytes || offset > block_.size() ||
        bytes > block_.size() - offset) {
      throw InvalidInput(
          concat(what, " at ", offset, " does not lie in the block of ", block_.size(), " bytes"));
    }
  }

  std::span<const std::byte> block_;
  const KvcalFlatHeader& header_;
};

}  // namespace

std::vector<std::byte> flat_bytes(const FlatCodebook& codebook) {
  if (codebook.layers.empty()) throw InvalidInput("no layer; expected at least one");
  const int bits = codebook.layers.front().key.bits;
  KvcalFlatHeader header{};
  std::memcpy(header.magic, KVCAL_FLAT_MAGIC, sizeof(header.magic));
  header.version = KVCAL_FLAT_VERSION;
  header.header_bytes = sizeof(header);
  header.layers_offset = sizeof(header);
  header.layers = static_cast<std::uint32_t>(codebook.layers.size());
  header.layer_bytes = sizeof(KvcalFlatLayer);
  header.bits = static_cast<std::uint32_t>(bits);
  header.sinks = codebook.sinks;
  header.value_per_head = codebook.value_per_head ? 1 : 0;
  header.outlier_fraction = static_cast<float>(codebook.outlier_fraction);
  put_text(header.content_sha256, codebook.content_sha256, "content_sha256");
  put_text(header.config_sha256, codebook.config_sha256, "config_sha256");
  put_text(header.weights_sha256, codebook.weights_sha256, "weights_sha256");

  Block block(sizeof(header) + codebook.layers.size() * sizeof(KvcalFlatLayer));
  std::uint64_t offset = header.layers_offset;
  for (const FlatLayer& layer : codebook.layers) {
    check_layer(layer, bits);
    const KvcalFlatLayer flat = append_layer(block, layer, codebook.outlier_fraction);
    block.put(offset, &flat, sizeof(flat));
    offset += sizeof(flat);
  }
  header.file_bytes = block.size();
  header.checksum = fnv1a(block.from(sizeof(header)));
  block.put(0, &header, sizeof(header));
  return block.take();
}

const KvcalFlatHeader& check_flat(std::span<const std::byte> block) {
  if (block.size() < sizeof(KvcalFlatHeader) ||
      std::memcmp(block.data(), KVCAL_FLAT_MAGIC, sizeof(KvcalFlatHeader::magic)) != 0)
    throw InvalidInput(concat("is no flat codebook: it does not begin with ", KVCAL_FLAT_MAGIC));
  const auto& header = *reinterpret_cast<const KvcalFlatHeader*>(block.data());
  if (header.version != KVCAL_FLAT_VERSION) {
    throw InvalidInput(concat("is a flat codebook of version ", header.version, "; expected ",
                              KVCAL_FLAT_VERSION, ": export it again"));
  }
  if (header.file_bytes != block.size())
    throw InvalidInput(concat("is not whole: ", block.size(), " of ", header.file_bytes, " bytes"));
  if (header.header_bytes < sizeof(KvcalFlatHeader) || header.header_bytes > block.size() ||
      header.layer_bytes < sizeof(KvcalFlatLayer) || header.bits < 2 || header.bits > 4)
    throw InvalidInput("has a header that contradicts itself");
  if (fnv1a(block.subspan(header.header_bytes)) != header.checksum)
    throw InvalidInput("was changed or damaged: its checksum does not match");
  Checker(block, header).check_layers();
  return header;
}

}  // namespace kvcal::codec
