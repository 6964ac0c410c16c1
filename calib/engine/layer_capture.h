// calib/engine/layer_capture.h: what the backward pass hands to the fit: what one layer caches, with gradients.
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <variant>
#include <vector>

#include "formats/codebook.h"
#include "formats/dtype.h"

namespace kvcal::calib {

/// Indices [begin, end).
struct Range {
  std::int64_t begin = 0, end = 0;
  [[nodiscard]] std::int64_t size() const { return end - begin; }
};

/// A number for each token and channel, in the type in which it was computed. What shares a pair of thresholds
/// lies together: the matrix is [channels, tokens] where they are a channel's, [tokens, channels] where they
/// are a token's.
class CapturedMatrix {
 public:
  CapturedMatrix() = default;
  /// Not initialised. dtype: F32 or BF16.
  CapturedMatrix(formats::ThresholdScope scope, std::int64_t tokens, std::int64_t channels,
                 formats::Dtype dtype);

  [[nodiscard]] bool empty() const { return tokens_ == 0; }
  [[nodiscard]] std::int64_t tokens() const { return tokens_; }
  [[nodiscard]] std::int64_t channels() const { return channels_; }

  /// numbers: some tokens from `first` on, [tokens, channels] of the matrix's type. Several threads may put
  /// different tokens at once. Throws base::Error where they are no whole tokens, or more than there is room for.
  void put(std::int64_t first, std::span<const std::byte> numbers);
  /// to: [tokens.size(), channels.size()], in float32.
  void read(Range tokens, Range channels, std::span<float> to) const;
  /// Hands each token's numbers, as float32, to `change` and keeps what it makes of them, rounded to the matrix's type. Calls it
  /// from several threads. Throws base::Error where thresholds are a channel's.
  void change_tokens(int threads, const std::function<void(std::span<float> numbers)>& change);

 private:
  template <typename Number>
  using RowMajor = Eigen::Matrix<Number, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  bool by_channel_ = false;
  std::int64_t tokens_ = 0, channels_ = 0;
  std::variant<RowMajor<float>, RowMajor<Eigen::bfloat16>> numbers_;
};

/// One cached tensor of a layer. Samples follow each other, without padding; their sinks stand behind all of them.
struct CapturedTensor {
  formats::CachedTensor tensor;
  /// As it is cached: keys before RoPE, values.
  CapturedMatrix x;
  /// dL/dx, not squared (squares of small ones would underflow); empty: every weight is 1.
  CapturedMatrix gradients;
  std::int64_t sinks = 0;  ///< the last tokens of both, so many

  /// Those without the sinks.
  [[nodiscard]] Range tokens() const { return {0, x.tokens() - sinks}; }
  [[nodiscard]] Range with_sinks() const { return {0, x.tokens()}; }
};

struct LayerCapture {
  int layer = 0;
  std::vector<CapturedTensor> tensors;  ///< in the order of Model::cache()
  /// After RoPE, without gradients: those of `tensors` whose thresholds are a channel's.
  std::vector<CapturedTensor> rotated;
};

/// Some consecutive tokens of a captured tensor, counted from 0. The tensor outlives it.
class CapturedTokens {
 public:
  /// All but sinks.
  explicit CapturedTokens(const CapturedTensor& whole) : CapturedTokens(whole, whole.tokens()) {}
  CapturedTokens(const CapturedTensor& whole, Range tokens) : tensor_(&whole), tokens_(tokens) {}

  [[nodiscard]] std::int64_t tokens() const { return tokens_.size(); }
  [[nodiscard]] std::int64_t channels() const { return tensor_->x.channels(); }
  [[nodiscard]] bool has_gradients() const { return !tensor_->gradients.empty(); }
  void read_x(Range tokens, Range channels, std::span<float> to) const {
    tensor_->x.read(in_whole(tokens), channels, to);
  }
  void read_gradients(Range tokens, Range channels, std::span<float> to) const {
    tensor_->gradients.read(in_whole(tokens), channels, to);
  }

 private:
  [[nodiscard]] Range in_whole(Range tokens) const {
    return {tokens_.begin + tokens.begin, tokens_.begin + tokens.end};
  }

  const CapturedTensor* tensor_;
  Range tokens_;
};

}  // namespace kvcal::calib
