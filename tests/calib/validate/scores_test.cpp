#include "calib/validate/scores.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/error.h"

namespace kvcal::calib {
namespace {

// The definitions, in double, one position at a time.
double loss_at(const at::Tensor& logits, std::int64_t target) {
  const at::Tensor wide = logits.to(at::kDouble);
  return (at::logsumexp(wide, 0) - wide[target]).item<double>();
}

double divergence_at(const at::Tensor& reference, const at::Tensor& logits) {
  const at::Tensor p = at::softmax(reference.to(at::kDouble), 0), q = at::softmax(logits.to(at::kDouble), 0);
  return (p * (p.log() - q.log())).sum().item<double>();
}

TEST(Scores, AreTheDefinitions) {
  at::manual_seed(1);
  const at::Tensor reference = at::randn({150, 40}) * 3, logits = reference + at::randn({150, 40}) * 0.1;
  std::vector<std::int32_t> targets;
  for (int i = 0; i < 150; ++i) targets.push_back(i * 7 % 40);
  const auto of = [&](std::int64_t begin, std::int64_t end) {
    const auto some =
        std::span(targets).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    return ReferenceScores(reference.slice(0, begin, end), some).compare(logits.slice(0, begin, end));
  };
  WindowScores scores = of(0, 50);
  scores.append(of(50, 150));
  ASSERT_EQ(scores.losses.size(), 150U);
  std::int64_t same = 0;
  for (int i = 0; i < 150; ++i) {
    const auto at = static_cast<std::size_t>(i);
    EXPECT_NEAR(scores.losses[at], loss_at(logits[i], targets[at]), 1e-5);
    EXPECT_NEAR(scores.divergences[at], divergence_at(reference[i], logits[i]), 1e-6);
    same += reference[i].argmax().item<std::int64_t>() == logits[i].argmax().item<std::int64_t>() ? 1 : 0;
  }
  EXPECT_EQ(std::accumulate(scores.same_top1.begin(), scores.same_top1.end(), 0), same);
  EXPECT_LT(same, 150);
}

TEST(Scores, OfTheSameLogitsDivergeByNothing) {
  const at::Tensor logits = at::randn({10, 5}) * 50;
  const std::vector<std::int32_t> targets(10, 2);
  const ReferenceScores reference(logits, targets);
  const WindowScores scores = reference.compare(logits);
  EXPECT_EQ(scores.losses, reference.itself().losses);
  EXPECT_EQ(scores.divergences, std::vector<float>(10, 0.0F));
  EXPECT_EQ(scores.same_top1, std::vector<std::uint8_t>(10, 1));
}

TEST(Scores, SeeADivergenceThatFloat32Loses) {
  // Probabilities that differ by 1e-6 of themselves: KL is about half its square.
  const at::Tensor reference = at::zeros({1, 2}, at::kDouble);
  const at::Tensor logits = at::tensor({1e-4, 0.0}, at::kDouble).unsqueeze(0);
  const std::vector<std::int32_t> targets = {0};
  const WindowScores scores = ReferenceScores(reference, targets).compare(logits);
  EXPECT_NEAR(scores.divergences[0], 1.25e-9, 1e-11);
}

WindowScores window(std::vector<float> losses, std::vector<float> divergences, std::int64_t same) {
  std::vector<std::uint8_t> same_top1(losses.size());
  std::fill_n(same_top1.begin(), same, std::uint8_t{1});
  return {std::move(losses), std::move(divergences), std::move(same_top1), {}};
}

TEST(Summary, WeighsPositionsAndTellsTheErrorOverWindows) {
  const std::vector<WindowScores> windows = {window({1, 3}, {0.5F, 0.25F}, 1), window({2, 4}, {0.125F, 0}, 2),
                                             window({3, 5}, {1, 0.125F}, 0)};
  const MethodScore score = summarise(windows);
  EXPECT_EQ(score.positions, 6);
  EXPECT_DOUBLE_EQ(score.perplexity, std::exp(3.0));
  // Window means 2, 3 and 4: a deviation of 1 over the root of 3.
  EXPECT_DOUBLE_EQ(score.perplexity_stderr, std::exp(3.0) / std::sqrt(3.0));
  EXPECT_DOUBLE_EQ(score.divergence_mean, 2.0 / 6);
  EXPECT_DOUBLE_EQ(score.top1_agreement, 0.5);
  // 0, 1/8, 1/8, 1/4, 1/2, 1: position 4.95 of the sorted.
  EXPECT_FLOAT_EQ(static_cast<float>(score.divergence_p99), 0.975F);
}

// Losses that are all higher by the same multiply the perplexity of every window alike.
TEST(Summary, TellsTheErrorOfADifferenceOverTheSameWindows) {
  const std::vector<WindowScores> exact = {window({1, 3}, {0, 0}, 2), window({2, 4}, {0, 0}, 2),
                                           window({3, 5}, {0, 0}, 2)};
  std::vector<WindowScores> higher = exact;
  for (WindowScores& one : higher)
    for (float& loss : one.losses) loss += 0.5F;
  EXPECT_DOUBLE_EQ(perplexity_delta_stderr(exact, higher), (std::exp(3.5) - std::exp(3.0)) / std::sqrt(3.0));
  EXPECT_EQ(perplexity_delta_stderr(exact, exact), 0);
  EXPECT_THROW((void)perplexity_delta_stderr(exact, std::span(higher).first(2)), base::Error);
}

TEST(Summary, OfOneWindowKnowsNoError) {
  const std::vector<WindowScores> windows = {window({1}, {0.5F}, 1)};
  EXPECT_EQ(summarise(windows).perplexity_stderr, 0);
  EXPECT_EQ(summarise(windows).divergence_p99, 0.5);
  EXPECT_THROW((void)summarise({}), base::Error);
}

TEST(Scores, OfOtherSizesAreAnError) {
  const std::vector<std::int32_t> targets(3, 0);
  EXPECT_THROW((void)ReferenceScores(at::zeros({3, 4}), targets).compare(at::zeros({3, 5})), base::Error);
  EXPECT_THROW((void)ReferenceScores(at::zeros({2, 4}), targets), base::Error);
}

}  // namespace
}  // namespace kvcal::calib
