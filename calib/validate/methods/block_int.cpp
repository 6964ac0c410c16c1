// The cache types q8_0 and q4_0 of llama.cpp: 32 channels of a token are a block, an fp16 scale and integers.
// Keys are taken after RoPE. The arithmetic and the bytes are those of llama.cpp's quantize_row_q8_0_ref and
// quantize_row_q4_0_ref (ggml-quants.c): codes come from the scale before its rounding to fp16.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

#include "base/error.h"
#include "calib/validate/cache_method.h"
#include "cuda/kernels/codec_math.h"
#include "cuda/kernels/float16.h"

namespace kvcal::calib {

MethodFamily block_int_methods();

namespace {

constexpr std::size_t kBlock = 32;

using BlockIn = std::span<const float, kBlock>;
using BlockOut = std::span<float, kBlock>;

/// Of one block: the number of largest magnitude, the first of several.
float largest(BlockIn x) {
  return *std::max_element(x.begin(), x.end(), [](float a, float b) { return std::abs(a) < std::abs(b); });
}

/// 1/d; 0 where d is stored as 0 and every code reads as 0 (1/d could be infinite there).
float inverse(float d) {
  return codec::half_to_float(codec::float_to_half(d)) == 0.0F ? 0.0F : 1.0F / d;
}

/// 34 bytes.
struct Q8Block {
  static constexpr const char* kName = "q8_0";

  std::uint16_t d;  // fp16 bits
  std::array<std::int8_t, kBlock> codes;

  static Q8Block encode(BlockIn x) {
    const float d = std::abs(largest(x)) / 127.0F;
    const float id = inverse(d);
    Q8Block block{codec::float_to_half(d), {}};
    for (std::size_t i = 0; i < kBlock; ++i) block.codes[i] = static_cast<std::int8_t>(std::round(x[i] * id));
    return block;
  }
  void decode(BlockOut x) const {
    const float scale = codec::half_to_float(d);
    for (std::size_t i = 0; i < kBlock; ++i) x[i] = static_cast<float>(codes[i]) * scale;
  }
};
static_assert(sizeof(Q8Block) == 34);

/// 18 bytes.
struct Q4Block {
  static constexpr const char* kName = "q4_0";

  std::uint16_t d;                               // fp16 bits
  std::array<std::uint8_t, kBlock / 2> nibbles;  // low: channel i; high: channel i + 16

  static Q4Block encode(BlockIn x) {
    const float d = largest(x) / -8.0F;
    const float id = inverse(d);
    // The largest is at -8; its negative would be at 8, which 15 cannot hold.
    const auto code = [id](float value) { return std::min(15, static_cast<int>(value * id + 8.5F)); };
    Q4Block block{codec::float_to_half(d), {}};
    for (std::size_t i = 0; i < kBlock / 2; ++i)
      block.nibbles[i] = static_cast<std::uint8_t>(code(x[i]) | (code(x[i + kBlock / 2]) << 4));
    return block;
  }
  void decode(BlockOut x) const {
    const float scale = codec::half_to_float(d);
    for (std::size_t i = 0; i < kBlock / 2; ++i) {
      x[i] = static_cast<float>((nibbles[i] & 15) - 8) * scale;
      x[i + kBlock / 2] = static_cast<float>((nibbles[i] >> 4) - 8) * scale;
    }
  }
};
static_assert(sizeof(Q4Block) == 18);

template <typename Block>
class BlockStorage final : public TensorStorage {
 public:
  explicit BlockStorage(const formats::CachedTensor& tensor)
      : point_(point_after_rope(tensor)), channels_(static_cast<std::size_t>(tensor.channels())) {}

  [[nodiscard]] fisher::CachePoint point() const override { return point_; }

  [[nodiscard]] bool by_token() const override { return true; }
  StorageUse store(std::int64_t /*first*/, std::span<const float> x, std::span<float> read) const override {
    StorageUse use;
    use.values = static_cast<std::int64_t>(x.size());
    for (std::size_t i = 0; i < x.size(); i += kBlock) {
      const BlockIn in(x.subspan(i).template first<kBlock>());
      const Block block = Block::encode(in);
      if (!codec::is_finite_half(block.d)) fail(in, i);
      block.decode(read.subspan(i).template first<kBlock>());
      use.bytes += static_cast<std::int64_t>(sizeof(Block));
    }
    return use;
  }

  [[nodiscard]] std::int64_t expected_bytes(std::int64_t tokens) const override {
    return tokens * static_cast<std::int64_t>(channels_ / kBlock * sizeof(Block));
  }

 private:
  [[noreturn]] void fail(BlockIn x, std::size_t begin) const {
    const float far = largest(x);
    const std::size_t i = begin + static_cast<std::size_t>(std::find(x.begin(), x.end(), far) - x.begin());
    throw base::InvalidInput(base::concat("token ", i / channels_, ", channel ", i % channels_, ": ",
                                          Block::kName, "'s scale for a block with ", far,
                                          " overflows fp16, whose largest is ", codec::kHalfMax));
  }

  fisher::CachePoint point_;
  std::size_t channels_;
};

template <typename Block>
class BlockMethod final : public CacheMethod {
 public:
  [[nodiscard]] std::unique_ptr<TensorStorage> storage(int layer,
                                                       const formats::CachedTensor& tensor) const override {
    if (tensor.channels() % static_cast<std::int64_t>(kBlock) != 0) {
      throw base::InvalidInput(base::concat(Block::kName, ", layer ", layer, ": the ", tensor.channels(),
                                            " channels of '", tensor.name, "' do not divide into blocks of ",
                                            kBlock, "; choose another method"));
    }
    return std::make_unique<BlockStorage<Block>>(tensor);
  }
};

std::unique_ptr<CacheMethod> make(std::string_view name, const formats::Codebook* /*codebook*/) {
  if (name == Q8Block::kName) return std::make_unique<BlockMethod<Q8Block>>();
  if (name == Q4Block::kName) return std::make_unique<BlockMethod<Q4Block>>();
  return nullptr;
}

std::vector<std::string> served(const formats::Codebook* /*codebook*/) {
  return {Q8Block::kName, Q4Block::kName};
}

std::vector<std::string> by_default(const formats::Codebook* /*codebook*/) {
  return {};
}

}  // namespace

MethodFamily block_int_methods() {
  return {{"q8_0, q4_0", "llama.cpp's cache types: blocks of 32 channels of a token; keys after RoPE"},
          make,
          served,
          by_default};
}

}  // namespace kvcal::calib
