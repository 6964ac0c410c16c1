#include "fisher/head_loss.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "base/error.h"

namespace kvcal::fisher {

HeadLoss head_loss(const Head& head, const at::Tensor& hidden, std::span<const std::int32_t> tokens,
                   bool with_gradient, std::int64_t rows_at_once) {
  const std::int64_t targets = static_cast<std::int64_t>(tokens.size()) - 1;
  if (targets < 1 || hidden.size(0) != targets + 1) {
    throw base::Error(base::concat("a loss needs at least 2 tokens and as many hidden states, not ",
                                   tokens.size(), " and ", hidden.size(0)));
  }
  if (rows_at_once < 1)
    throw base::Error(base::concat("a loss works on 1 row at a time or more, not ", rows_at_once));
  HeadLoss result;
  if (with_gradient) result.hidden_gradient = at::zeros_like(hidden);
  const at::Tensor ids = at::from_blob(const_cast<std::int32_t*>(tokens.data()), {targets + 1}, at::kInt)
                             .to(hidden.device(), at::kLong);

  const at::AutoGradMode graph(with_gradient);
  double sum = 0;
  // Pieces of the same size, so that their tensors can share memory.
  const std::int64_t pieces = (targets + rows_at_once - 1) / rows_at_once;
  rows_at_once = (targets + pieces - 1) / pieces;
  for (std::int64_t begin = 0; begin < targets; begin += rows_at_once) {
    const std::int64_t end = std::min(targets, begin + rows_at_once);
    at::Tensor rows = hidden.slice(0, begin, end).detach();
    if (with_gradient) rows.requires_grad_(true);
    const at::Tensor log_probabilities = at::log_softmax(head.logits(rows), -1, at::kFloat);
    const at::Tensor negative_log_likelihood =
        -log_probabilities.gather(1, ids.slice(0, begin + 1, end + 1).unsqueeze(1)).squeeze(1);
    sum += negative_log_likelihood.detach().to(at::kDouble).sum().item<double>();
    if (!with_gradient) continue;
    const at::Tensor scale = at::full_like(negative_log_likelihood, 1.0 / static_cast<double>(targets));
    const auto gradients = torch::autograd::grad({negative_log_likelihood}, {rows}, {scale});
    result.hidden_gradient.slice(0, begin, end).copy_(gradients[0]);
  }
  result.loss = sum / static_cast<double>(targets);
  return result;
}

}  // namespace kvcal::fisher
