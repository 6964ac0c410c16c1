#include "cuda/flat_codebook.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "cuda/kernels/flat_reader.h"
#include "cuda/vector_codec.h"

namespace kvcal::codec {
namespace {

FlatCodebook some_codebook(double outliers) {
  FlatCodebook codebook;
  codebook.sinks = 1;
  codebook.outlier_fraction = outliers;
  codebook.content_sha256 = std::string(64, 'a');
  for (const std::uint32_t index : {0U, 3U}) {
    FlatLayer layer{index, 2, 4, 3, 0, std::vector<float>(8, -1.5F), std::vector<float>(8, 2.5F), {}, {}};
    layer.key = make_datatype(std::vector<float>{-1, -0.25F, 0.25F, 1});
    layer.value = make_datatype(std::vector<float>{-1, -0.5F, 0.5F, 1}, {1.5F, 0.25F});
    codebook.layers.push_back(layer);
  }
  return codebook;
}

TEST(FlatCodebookOf, ABlockIsReadWhereItLies) {
  const std::vector<std::byte> block = flat_bytes(some_codebook(0.01));
  const KvcalFlatHeader& header = check_flat(block);
  EXPECT_EQ(header.bits, 2U);
  EXPECT_EQ(header.layers, 2U);
  EXPECT_EQ(std::string(header.content_sha256, 64), std::string(64, 'a'));
  EXPECT_EQ(header.version, 1U);
  EXPECT_EQ(header.layer_bytes, 80U);
  const KvcalFlatLayer first = flat_layer(block.data(), 0), second = flat_layer(block.data(), 1);
  EXPECT_EQ(second.index, 3U);
  EXPECT_EQ(second.value_bits, 2U);
  EXPECT_EQ(second.value_outliers, 0.01F);
  const auto* levels = reinterpret_cast<const float*>(block.data() + second.value_levels);
  EXPECT_EQ(levels[3], 1.75F);
  const auto* affines = reinterpret_cast<const Affine*>(block.data() + second.key_affines);
  EXPECT_EQ(affines[7], (Affine{0x4000, 0x3800}));  // 2 and 0.5
  const auto* lower = reinterpret_cast<const float*>(block.data() + first.key_lower);
  EXPECT_EQ(lower[5], -1.5F);
}

TEST(FlatCodebookOf, BitsAndOutliersOfEachTensorStandAtItsLayer) {
  FlatCodebook codebook = some_codebook(0.01);
  codebook.layers[1].value = make_datatype(std::vector<float>{-1, -0.5F, -0.25F, 0, 0.25F, 0.5F, 0.75F, 1});
  codebook.layers[1].key_outliers = 0;
  const std::vector<std::byte> block = flat_bytes(codebook);
  const KvcalFlatHeader& header = check_flat(block);
  EXPECT_EQ(header.version, 2U);
  EXPECT_EQ(header.bits, 0U);
  EXPECT_EQ(header.outlier_fraction, 0);
  const KvcalFlatLayer first = flat_layer(block.data(), 0), second = flat_layer(block.data(), 1);
  EXPECT_EQ(first.value_bits, 2U);
  EXPECT_EQ(first.key_outliers, 0.01F);
  EXPECT_EQ(second.key_bits, 2U);
  EXPECT_EQ(second.value_bits, 3U);
  EXPECT_EQ(second.key_outliers, 0);
  EXPECT_EQ(second.value_outliers, 0.01F);
  EXPECT_EQ(second.key_lower, 0U);
  EXPECT_EQ(reinterpret_cast<const float*>(block.data() + second.value_levels)[6], 0.75F);
  // What asks for other bits than there are.
  std::vector<std::byte> damaged = block;
  auto* layer = reinterpret_cast<KvcalFlatLayer*>(damaged.data() + header.layers_offset);
  layer->value_bits = 5;
  auto* sealed = reinterpret_cast<KvcalFlatHeader*>(damaged.data());
  sealed->checksum = flat_checksum(std::span<const std::byte>(damaged).subspan(sealed->header_bytes));
  EXPECT_THROW((void)check_flat(damaged), base::InvalidInput);
}

TEST(FlatCodebookOf, TurnedValuesAreOfAVersionThatOlderReadersRefuse) {
  FlatCodebook codebook = some_codebook(0.01);
  for (FlatLayer& layer : codebook.layers) layer.value_dim = 80;
  codebook.layers[1].value_rotation_block = 16;
  const std::vector<std::byte> block = flat_bytes(codebook);
  const KvcalFlatHeader& header = check_flat(block);
  EXPECT_EQ(header.version, 3U);
  EXPECT_EQ(header.layer_bytes, 104U);
  EXPECT_EQ(header.bits, 0U);
  const KvcalFlatLayer first = flat_layer(block.data(), 0), second = flat_layer(block.data(), 1);
  EXPECT_EQ(first.value_rotation_block, 0U);
  EXPECT_EQ(second.value_rotation_block, 16U);
  EXPECT_EQ(second.value_bits, 2U);
  EXPECT_EQ(second.value_outliers, 0.01F);
  EXPECT_EQ(reinterpret_cast<const float*>(block.data() + second.value_levels)[3], 1.75F);
  // Blocks that no head of 80 channels has.
  for (const std::uint32_t wrong : {3U, 32U, 80U, 0x80000000U}) {
    std::vector<std::byte> damaged = block;
    auto* sealed = reinterpret_cast<KvcalFlatHeader*>(damaged.data());
    auto* layers = reinterpret_cast<KvcalFlatLayer*>(damaged.data() + header.layers_offset);
    layers[1].value_rotation_block = wrong;
    sealed->checksum = flat_checksum(std::span<const std::byte>(damaged).subspan(sealed->header_bytes));
    EXPECT_THROW((void)check_flat(damaged), base::InvalidInput) << wrong;
    codebook.layers[1].value_rotation_block = wrong;
    EXPECT_THROW((void)flat_bytes(codebook), base::InvalidInput) << wrong;
  }
}

TEST(FlatCodebookOf, WithoutOutliersThereAreNoThresholds) {
  const std::vector<std::byte> block = flat_bytes(some_codebook(0));
  const auto* layer = reinterpret_cast<const KvcalFlatLayer*>(block.data() + check_flat(block).layers_offset);
  EXPECT_EQ(layer->key_lower, 0U);
  EXPECT_EQ(layer->key_upper, 0U);
}

TEST(FlatCodebookOf, EveryChangedByteAndEveryTruncationIsRefused) {
  const std::vector<std::byte> whole = flat_bytes(some_codebook(0.01));
  for (std::size_t i = 0; i < whole.size(); ++i) {
    // The tables say nothing of what they are: names of model and codebook, and what only readers use.
    const bool free_field = i >= offsetof(KvcalFlatHeader, sinks) && i < sizeof(KvcalFlatHeader);
    std::vector<std::byte> block = whole;
    block[i] ^= std::byte{0x41};
    if (free_field) continue;
    EXPECT_THROW((void)check_flat(block), base::InvalidInput) << i;
  }
  for (std::size_t size = 0; size < whole.size(); size += 8)
    EXPECT_THROW((void)check_flat(std::span(whole).first(size)), base::InvalidInput) << size;
}

TEST(FlatCodebookOf, OffsetsOutsideAreRefusedEvenWithAChecksumThatFits) {
  std::vector<std::byte> block = flat_bytes(some_codebook(0.01));
  auto* header = reinterpret_cast<KvcalFlatHeader*>(block.data());
  auto* layer = reinterpret_cast<KvcalFlatLayer*>(block.data() + header->layers_offset);
  const auto reseal = [&] {
    std::uint64_t hash = 0xcbf29ce484222325U;
    for (std::size_t i = header->header_bytes; i < block.size(); ++i)
      hash = (hash ^ static_cast<std::uint64_t>(block[i])) * 0x100000001b3U;
    header->checksum = hash;
  };
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{block.size()}, ~std::uint64_t{63}}) {
    layer->key_levels = offset;
    reseal();
    EXPECT_THROW((void)check_flat(block), base::InvalidInput) << offset;
  }
}

TEST(FlatCodebookOf, SizesThatDisagreeAreNotWritten) {
  FlatCodebook codebook = some_codebook(0);
  codebook.layers[1].key_lower.pop_back();
  EXPECT_THROW((void)flat_bytes(codebook), base::InvalidInput);
  EXPECT_THROW((void)flat_bytes({}), base::InvalidInput);
}

}  // namespace
}  // namespace kvcal::codec
