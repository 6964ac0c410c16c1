#include "cuda/flat_codebook.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "cuda/kernels/flat_reader.h"
#include "cuda/kernels/rotation.h"
#include "cuda/vector_codec.h"

namespace kvcal::codec {
namespace {

static_assert(std::endian::native == std::endian::little, "the block is written as it lies in memory");
static_assert(sizeof(KvcalFlatHeader) == 256 && sizeof(KvcalFlatLayer) == 104 && sizeof(Affine) == 4);

using base::concat;
using base::InvalidInput;

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

void check_layer(const FlatLayer& layer) {
  const std::size_t channels = std::size_t{layer.kv_heads} * layer.key_dim;
  if (layer.key_lower.size() != channels || layer.key_upper.size() != channels) {
    throw InvalidInput(concat("layer ", layer.index, ": ", layer.key_lower.size(), " and ",
                              layer.key_upper.size(), " thresholds of ", channels, " channels"));
  }
  if (!is_rotation_block(layer.value_rotation_block, layer.value_dim)) {
    throw InvalidInput(concat("layer ", layer.index, ": ", layer.value_rotation_block,
                              " channels turned together; expected a power of two that divides ",
                              layer.value_dim));
  }
}

/// Of a layer's tensors.
struct Outliers {
  double key = 0, value = 0;
  friend bool operator==(const Outliers&, const Outliers&) = default;
};

Outliers outliers_of(const FlatLayer& layer, const FlatCodebook& codebook) {
  return {layer.key_outliers.value_or(codebook.outlier_fraction),
          layer.value_outliers.value_or(codebook.outlier_fraction)};
}

/// Whether all tensors have the bits and outliers of the first key.
bool is_uniform(const FlatCodebook& codebook) {
  const int bits = codebook.layers.front().key.bits;
  const double fraction = outliers_of(codebook.layers.front(), codebook).key;
  return std::ranges::all_of(codebook.layers, [&](const FlatLayer& layer) {
    return layer.key.bits == bits && layer.value.bits == bits &&
           outliers_of(layer, codebook) == Outliers{fraction, fraction};
  });
}

std::uint32_t version_of(const FlatCodebook& codebook) {
  const bool turned = std::ranges::any_of(
      codebook.layers, [](const FlatLayer& layer) { return layer.value_rotation_block > 0; });
  if (turned) return KVCAL_FLAT_VERSION_TURNED;
  return is_uniform(codebook) ? KVCAL_FLAT_VERSION : KVCAL_FLAT_VERSION_MIXED;
}

KvcalFlatLayer append_layer(Block& block, const FlatLayer& layer, const Outliers& fractions) {
  const double outliers = fractions.key;
  const KeyNormaliser normaliser =
      layer.key_scale.empty()
          ? KeyNormaliser(layer.key_lower, layer.key_upper, outliers)
          : KeyNormaliser(layer.key_lower, layer.key_upper, outliers, layer.key_scale, layer.key_zero);
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
  const std::size_t key_levels = std::size_t{1} << layer.key.bits;
  const std::size_t value_levels = std::size_t{1} << layer.value.bits;
  const auto append = [&](const float* numbers, std::size_t count) {
    return block.append(std::span<const float>(numbers, count));
  };
  flat.key_midpoints = append(layer.key.midpoints, key_levels - 1);
  flat.key_levels = append(layer.key.levels, key_levels);
  flat.value_midpoints = append(layer.value.midpoints, value_levels - 1);
  flat.value_levels = append(layer.value.levels, value_levels);
  flat.key_bits = static_cast<std::uint32_t>(layer.key.bits);
  flat.value_bits = static_cast<std::uint32_t>(layer.value.bits);
  flat.key_outliers = static_cast<float>(fractions.key);
  flat.value_outliers = static_cast<float>(fractions.value);
  flat.value_rotation_block = layer.value_rotation_block;
  return flat;
}

}  // namespace

std::vector<std::byte> flat_bytes(const FlatCodebook& codebook) {
  if (codebook.layers.empty()) throw InvalidInput("no layer; expected at least one");
  const std::uint32_t version = version_of(codebook);
  const std::size_t layer_bytes = flat_layer_bytes(version);
  KvcalFlatHeader header{};
  std::memcpy(header.magic, KVCAL_FLAT_MAGIC, sizeof(header.magic));
  header.version = version;
  header.header_bytes = sizeof(header);
  header.layers_offset = sizeof(header);
  header.layers = static_cast<std::uint32_t>(codebook.layers.size());
  header.layer_bytes = static_cast<std::uint32_t>(layer_bytes);
  header.sinks = codebook.sinks;
  header.value_per_head = codebook.value_per_head ? 1 : 0;
  if (version == KVCAL_FLAT_VERSION) {
    header.bits = static_cast<std::uint32_t>(codebook.layers.front().key.bits);
    header.outlier_fraction = static_cast<float>(outliers_of(codebook.layers.front(), codebook).key);
  }
  put_text(header.content_sha256, codebook.content_sha256, "content_sha256");
  put_text(header.config_sha256, codebook.config_sha256, "config_sha256");
  put_text(header.weights_sha256, codebook.weights_sha256, "weights_sha256");

  Block block(sizeof(header) + codebook.layers.size() * layer_bytes);
  std::uint64_t offset = header.layers_offset;
  for (const FlatLayer& layer : codebook.layers) {
    check_layer(layer);
    const KvcalFlatLayer flat = append_layer(block, layer, outliers_of(layer, codebook));
    block.put(offset, &flat, layer_bytes);
    offset += layer_bytes;
  }
  header.file_bytes = block.size();
  header.checksum = flat_checksum(block.from(sizeof(header)));
  block.put(0, &header, sizeof(header));
  return block.take();
}

const KvcalFlatHeader& check_flat(std::span<const std::byte> block) {
  const std::string problem = flat_problem(block);
  if (!problem.empty()) throw InvalidInput(problem);
  return *reinterpret_cast<const KvcalFlatHeader*>(block.data());
}

}  // namespace kvcal::codec
