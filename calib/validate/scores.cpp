#include "calib/validate/scores.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "cuda/vector_codec.h"

namespace kvcal::calib {
namespace {

std::vector<float> floats(const at::Tensor& values) {
  const at::Tensor plain = values.to(at::kCPU, at::kFloat).contiguous();
  const auto* data = plain.const_data_ptr<float>();
  return {data, data + plain.numel()};
}

// 1 where a row's largest is `token`'s.
std::vector<std::uint8_t> chooses(const at::Tensor& logits, const at::Tensor& token) {
  const at::Tensor same = logits.argmax(-1).eq(token).to(at::kCPU, at::kByte).contiguous();
  const auto* data = same.const_data_ptr<std::uint8_t>();
  return {data, data + same.numel()};
}

// -log p of each row's target.
std::vector<float> losses(const at::Tensor& log_probabilities, const at::Tensor& targets) {
  return floats(-log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1));
}

/// The mean over positions of a number of each, and its standard error from the windows' own means: the
/// ratio estimate, for windows need not be of one length.
struct Mean {
  double mean = 0, error = 0;
};

Mean mean_over_windows(std::span<const WindowScores> windows,
                       const std::vector<float> WindowScores::*numbers) {
  double sum = 0, count = 0;
  std::vector<std::pair<double, double>> parts;  // sum and count of each window
  for (const WindowScores& window : windows) {
    double part = 0;
    for (const float number : window.*numbers) part += static_cast<double>(number);
    parts.emplace_back(part, static_cast<double>((window.*numbers).size()));
    sum += part;
    count += parts.back().second;
  }
  Mean result{sum / count, 0};
  const auto size = static_cast<double>(windows.size());
  if (windows.size() < 2) return result;
  double squares = 0;
  for (const auto& [part, positions] : parts) squares += std::pow(part - result.mean * positions, 2);
  result.error = std::sqrt(squares * size / (size - 1)) / count;
  return result;
}

}  // namespace

void WindowScores::append(const WindowScores& more) {
  losses.insert(losses.end(), more.losses.begin(), more.losses.end());
  divergences.insert(divergences.end(), more.divergences.begin(), more.divergences.end());
  same_top1.insert(same_top1.end(), more.same_top1.begin(), more.same_top1.end());
  recalled.insert(recalled.end(), more.recalled.begin(), more.recalled.end());
}

ReferenceScores::ReferenceScores(const at::Tensor& logits, std::span<const std::int32_t> targets) {
  const auto positions = static_cast<std::int64_t>(targets.size());
  if (logits.dim() != 2 || logits.size(0) != positions)
    throw base::Error(base::concat("logits of ", logits.size(0), " positions, ", positions, " targets"));
  const at::NoGradGuard no_graph;
  targets_ = at::from_blob(const_cast<std::int32_t*>(targets.data()), {positions}, at::kInt)
                 .to(logits.device(), at::kLong);
  log_probabilities_ = at::log_softmax(logits, -1, at::kDouble);
  probabilities_ = log_probabilities_.exp();
  top1_ = logits.argmax(-1);
}

WindowScores ReferenceScores::itself() const {
  WindowScores scores{losses(log_probabilities_, targets_), {}, {}, chooses(log_probabilities_, targets_)};
  scores.divergences.assign(scores.losses.size(), 0.0F);
  scores.same_top1.assign(scores.losses.size(), 1);
  return scores;
}

WindowScores ReferenceScores::compare(const at::Tensor& logits) const {
  if (logits.sizes() != log_probabilities_.sizes())
    throw base::Error(base::concat("logits of ", logits.sizes(), " beside ", log_probabilities_.sizes()));
  const at::NoGradGuard no_graph;
  const at::Tensor ours = at::log_softmax(logits, -1, at::kDouble);
  WindowScores scores;
  scores.losses = losses(ours, targets_);
  // Rounding can leave a divergence of nothing just below 0.
  scores.divergences = floats((probabilities_ * (log_probabilities_ - ours)).sum(-1).clamp_min(0));
  scores.same_top1 = chooses(logits, top1_);
  scores.recalled = chooses(logits, targets_);
  return scores;
}

MethodScore summarise(std::span<const WindowScores> windows) {
  MethodScore score;
  std::vector<float> divergences;
  std::int64_t same = 0;
  for (const WindowScores& window : windows) {
    divergences.insert(divergences.end(), window.divergences.begin(), window.divergences.end());
    same += std::accumulate(window.same_top1.begin(), window.same_top1.end(), std::int64_t{0});
  }
  if (divergences.empty()) throw base::Error("scores of no position");
  score.positions = static_cast<std::int64_t>(divergences.size());
  const Mean loss = mean_over_windows(windows, &WindowScores::losses);
  score.perplexity = std::exp(loss.mean);
  score.perplexity_stderr = score.perplexity * loss.error;
  const Mean divergence = mean_over_windows(windows, &WindowScores::divergences);
  score.divergence_mean = divergence.mean;
  score.divergence_stderr = divergence.error;
  score.divergence_p99 = codec::quantile(divergences, 0.99);
  score.top1_agreement = static_cast<double>(same) / static_cast<double>(score.positions);
  return score;
}

std::vector<MethodScore> summarise_positions(std::span<const WindowScores> windows) {
  std::vector<MethodScore> scores;
  const std::size_t count = windows.empty() ? 0 : windows.front().losses.size();
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<WindowScores> at_position;
    for (const WindowScores& window : windows) {
      if (window.losses.size() != count) throw base::Error("windows with other numbers of positions");
      at_position.push_back(
          {{window.losses[i]}, {window.divergences[i]}, {window.same_top1[i]}, {window.recalled[i]}});
    }
    scores.push_back(summarise(at_position));
  }
  return scores;
}

// d exp(mean) = exp(mean) d mean, and each window's part of the mean is what it has beyond its share.
double perplexity_delta_stderr(std::span<const WindowScores> exact, std::span<const WindowScores> method) {
  if (exact.size() != method.size()) throw base::Error("scores of other windows");
  if (exact.size() < 2) return 0;
  const Mean of_exact = mean_over_windows(exact, &WindowScores::losses);
  const Mean of_method = mean_over_windows(method, &WindowScores::losses);
  double squares = 0, count = 0;
  for (std::size_t w = 0; w < exact.size(); ++w) {
    double part = 0;
    for (std::size_t i = 0; i < exact[w].losses.size(); ++i) {
      part += std::exp(of_method.mean) * (static_cast<double>(method[w].losses[i]) - of_method.mean) -
              std::exp(of_exact.mean) * (static_cast<double>(exact[w].losses[i]) - of_exact.mean);
    }
    squares += part * part;
    count += static_cast<double>(exact[w].losses.size());
  }
  const auto size = static_cast<double>(exact.size());
  return std::sqrt(squares * size / (size - 1)) / count;
}

}  // namespace kvcal::calib
