#include "calib/engine/layer_capture.h"

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "base/parallel.h"

namespace kvcal::calib {
namespace {

// Tokens that a call of a parallel loop changes.
constexpr std::int64_t kTokensAtOnce = 256;

// A tile of what is transposed: a cache line or two of a few channels.
constexpr std::int64_t kTileTokens = 32, kTileChannels = 8;

void widen(const float* from, std::int64_t count, float* to) {
  std::copy_n(from, count, to);
}

void widen(const Eigen::bfloat16* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; ++i)
    to[i] = std::bit_cast<float>(std::uint32_t{Eigen::numext::bit_cast<std::uint16_t>(from[i])} << 16);
}

// from: [channels, tokens], rows `stride` apart; to: [tokens, channels].
template <typename Number>
void transpose(const Number* from, std::int64_t stride, std::int64_t channels, std::int64_t tokens,
               float* to) {
  float tile[kTileChannels][kTileTokens];
  for (std::int64_t t = 0; t < tokens; t += kTileTokens) {
    const std::int64_t count = std::min(kTileTokens, tokens - t);
    for (std::int64_t c = 0; c < channels; c += kTileChannels) {
      const std::int64_t width = std::min(kTileChannels, channels - c);
      for (std::int64_t i = 0; i < width; ++i) widen(from + (c + i) * stride + t, count, tile[i]);
      if (width == kTileChannels) {
        for (std::int64_t j = 0; j < count; ++j) {
          for (std::int64_t i = 0; i < kTileChannels; ++i) to[(t + j) * channels + c + i] = tile[i][j];
        }
        continue;
      }
      for (std::int64_t j = 0; j < count; ++j) {
        for (std::int64_t i = 0; i < width; ++i) to[(t + j) * channels + c + i] = tile[i][j];
      }
    }
  }
}

// Room for so many tokens in a row of a channel: rows begin an odd number of cache lines apart, or those of all
// channels would compete for the same few places in the cache.
std::int64_t row_length(std::int64_t tokens, std::size_t number_bytes) {
  const auto per_line = static_cast<std::int64_t>(64 / number_bytes);
  const std::int64_t lines = (tokens + per_line - 1) / per_line;
  return (lines | 1) * per_line;
}

}  // namespace

CapturedMatrix::CapturedMatrix(formats::ThresholdScope scope, std::int64_t tokens, std::int64_t channels,
                               formats::Dtype dtype)
    : by_channel_(scope == formats::ThresholdScope::channel), tokens_(tokens), channels_(channels) {
  if (dtype != formats::Dtype::F32 && dtype != formats::Dtype::BF16)
    throw base::Error(base::concat("captured tensors are F32 or BF16, not ", formats::dtype_name(dtype)));
  if (dtype == formats::Dtype::BF16) numbers_.emplace<RowMajor<Eigen::bfloat16>>();
  std::visit(
      [&]<typename Number>(RowMajor<Number>& matrix) {
        if (by_channel_)
          matrix.resize(channels, row_length(tokens, sizeof(Number)));
        else
          matrix.resize(tokens, channels);
      },
      numbers_);
}

void CapturedMatrix::put(std::int64_t first, std::span<const std::byte> numbers) {
  std::visit(
      [&]<typename Number>(RowMajor<Number>& matrix) {
        const auto row_bytes = static_cast<std::int64_t>(sizeof(Number)) * channels_;
        const std::int64_t count = static_cast<std::int64_t>(numbers.size()) / row_bytes;
        if (static_cast<std::int64_t>(numbers.size()) != count * row_bytes || first < 0 ||
            first + count > tokens_) {
          throw base::Error(base::concat(numbers.size(), " bytes put at token ", first, " of ", tokens_,
                                         ", each of ", row_bytes));
        }
        const Eigen::Map<const RowMajor<Number>> from(reinterpret_cast<const Number*>(numbers.data()), count,
                                                      channels_);
        if (by_channel_)
          matrix.middleCols(first, count) = from.transpose();
        else
          matrix.middleRows(first, count) = from;
      },
      numbers_);
}

void CapturedMatrix::read(Range tokens, Range channels, std::span<float> to) const {
  std::visit(
      [&](const auto& matrix) {
        const auto* numbers = matrix.data();
        const std::int64_t stride = matrix.cols();
        if (by_channel_) {
          transpose(numbers + channels.begin * stride + tokens.begin, stride, channels.size(), tokens.size(),
                    to.data());
          return;
        }
        for (std::int64_t t = 0; t < tokens.size(); ++t) {
          widen(numbers + (tokens.begin + t) * stride + channels.begin, channels.size(),
                to.data() + t * channels.size());
        }
      },
      numbers_);
}

void CapturedMatrix::change_tokens(int threads, const std::function<void(std::span<float> numbers)>& change) {
  if (by_channel_) throw base::Error("tokens of a matrix that lies by channel cannot be changed one by one");
  std::visit(
      [&]<typename Number>(RowMajor<Number>& matrix) {
        base::parallel_for((tokens_ + kTokensAtOnce - 1) / kTokensAtOnce, threads, [&](std::int64_t block) {
          std::vector<float> numbers(static_cast<std::size_t>(channels_));
          for (std::int64_t t = block * kTokensAtOnce; t < std::min(tokens_, (block + 1) * kTokensAtOnce);
               ++t) {
            Number* const row = matrix.data() + t * channels_;
            widen(row, channels_, numbers.data());
            change(numbers);
            std::ranges::transform(numbers, row, [](float number) { return Number(number); });
          }
        });
      },
      numbers_);
}

}  // namespace kvcal::calib
