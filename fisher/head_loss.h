// fisher/head_loss.h: the loss of a sample and its gradient at the last hidden state,
// the vocabulary in pieces.
#pragma once

#include <cstdint>
#include <span>

#include "fisher/block.h"

namespace kvcal::fisher {

struct HeadLoss {
  double loss = 0;             ///< mean cross-entropy over the sample's tokens - 1 targets, in nats
  at::Tensor hidden_gradient;  ///< dL/dhidden [tokens, hidden_size]; undefined where it was not asked for
};

/// hidden: [tokens, hidden_size], the output of the last block; tokens: its token ids, at least 2. Position i
/// predicts token i + 1; the last position predicts nothing and its gradient is zero. Works on `rows_at_once`
/// positions at a time, so that the logits of a long sample never exist together. Throws base::Error where
/// hidden states and tokens are not as many, fewer than 2, or rows_at_once is below 1.
[[nodiscard]] HeadLoss head_loss(const Head& head, const at::Tensor& hidden,
                                 std::span<const std::int32_t> tokens, bool with_gradient,
                                 std::int64_t rows_at_once);

/// How many positions to take at a time: as many as keep the logits of a vocabulary, in float32, within 24
/// MiB; 64 to 512. The same on every machine, so that results are.
[[nodiscard]] constexpr std::int64_t head_rows(std::int64_t vocab_size) {
  constexpr std::int64_t kLogitBytes = std::int64_t{24} << 20;
  const std::int64_t rows = kLogitBytes / (4 * vocab_size);
  return rows < 64 ? 64 : rows > 512 ? 512 : rows;
}

}  // namespace kvcal::fisher
