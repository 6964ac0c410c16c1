// calib/validate/scores.h: how the logits of a quantised cache compare with the full-precision model's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "calib/validate/method_score.h"

namespace kvcal::calib {

/// Of one method at the scored positions of one window, in their order.
struct WindowScores {
  std::vector<float> losses;            ///< -log p(next token), nats
  std::vector<float> divergences;       ///< KL(full precision || method) over the vocabulary, nats
  std::vector<std::uint8_t> same_top1;  ///< 1 where both would choose the same token
  std::vector<std::uint8_t> recalled;   ///< 1 where the method would choose the token that follows

  /// The positions of `more` come after these.
  void append(const WindowScores& more);
};

/// The full-precision model at some positions, with which methods are compared. Log-probabilities and their sums
/// are taken in float64: divergences of 1e-6 are of interest.
class ReferenceScores {
 public:
  /// logits: [positions, vocabulary], float32; targets: the token that follows each position.
  /// Throws base::Error where they are not as many.
  ReferenceScores(const at::Tensor& logits, std::span<const std::int32_t> targets);
  /// Its own scores: divergences of 0.
  [[nodiscard]] WindowScores itself() const;
  /// logits: of the same shape. Throws base::Error where it is another.
  [[nodiscard]] WindowScores compare(const at::Tensor& logits) const;

 private:
  at::Tensor log_probabilities_, probabilities_, top1_, targets_;
};

/// Positions weigh the same, whatever their window. Throws base::Error where there is none.
[[nodiscard]] MethodScore summarise(std::span<const WindowScores> windows);

/// One score for each scored position, over the windows, which all have as many: how a cost grows with what was
/// decoded. Perplexities are those of the position. Throws base::Error where a window has another number.
[[nodiscard]] std::vector<MethodScore> summarise_positions(std::span<const WindowScores> windows);

/// The standard error, over windows, of the difference between the two perplexities: the windows are the same, so
/// it is far below that of either. 0 where there is one window. Throws base::Error where they differ in number.
[[nodiscard]] double perplexity_delta_stderr(std::span<const WindowScores> exact,
                                             std::span<const WindowScores> method);

}  // namespace kvcal::calib
