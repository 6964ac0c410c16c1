#include "calib/engine/layer_capture.h"

#include <algorithm>

#include "base/error.h"

namespace kvcal::calib {
namespace {

// Tokens of a channel that are read together: a cache line or two of it.
constexpr std::int64_t kTokensAtOnce = 32;

}  // namespace

CapturedMatrix::CapturedMatrix(formats::ThresholdScope scope, std::int64_t tokens, std::int64_t channels,
                               formats::Dtype dtype)
    : by_channel_(scope == formats::ThresholdScope::channel), tokens_(tokens), channels_(channels) {
  if (dtype != formats::Dtype::F32 && dtype != formats::Dtype::BF16)
    throw base::Error(base::concat("captured tensors are F32 or BF16, not ", formats::dtype_name(dtype)));
  if (dtype == formats::Dtype::BF16) numbers_.emplace<RowMajor<Eigen::bfloat16>>();
  std::visit(
      [&](auto& numbers) {
        numbers.resize(by_channel_ ? channels : tokens, by_channel_ ? tokens : channels);
      },
      numbers_);
}

void CapturedMatrix::put(std::int64_t first, std::span<const std::byte> numbers) {
  std::visit(
      [&]<typename Number>(RowMajor<Number>& matrix) {
        const std::int64_t count = static_cast<std::int64_t>(numbers.size() / sizeof(Number)) / channels_;
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
  Eigen::Map<RowMajor<float>> out(to.data(), tokens.size(), channels.size());
  std::visit(
      [&](const auto& matrix) {
        if (!by_channel_) {
          out = matrix.block(tokens.begin, channels.begin, tokens.size(), channels.size())
                    .template cast<float>();
          return;
        }
        // A few tokens of every channel, then the next: a row of the matrix is read along its cache lines, and
        // what is written stays in the cache.
        for (std::int64_t begin = 0; begin < tokens.size(); begin += kTokensAtOnce) {
          const std::int64_t count = std::min(kTokensAtOnce, tokens.size() - begin);
          for (std::int64_t c = 0; c < channels.size(); ++c) {
            out.col(c).segment(begin, count) =
                matrix.row(channels.begin + c).segment(tokens.begin + begin, count).template cast<float>();
          }
        }
      },
      numbers_);
}

}  // namespace kvcal::calib
