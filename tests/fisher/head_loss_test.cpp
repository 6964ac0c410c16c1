#include "fisher/head_loss.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "base/error.h"

namespace kvcal::fisher {
namespace {

constexpr std::int64_t kHidden = 5, kVocabulary = 7;
// The first and the last id, one twice in a row. Seven targets: pieces of 2 and 3 rows leave a rest.
const std::vector<std::int32_t> kTokens = {3, 0, 6, 6, 1, 4, 2, 5};

at::Tensor random(std::uint64_t seed, at::IntArrayRef shape) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::kDouble);
}

/// logits = projection tanh(hidden), in double up to the float32 that a head must return. Keeps what it saw.
struct ToyHead final : Head {
  at::Tensor projection = random(1, {kVocabulary, kHidden});
  mutable std::int64_t most_rows = 0;
  mutable bool built_graph = false;

  [[nodiscard]] at::Tensor logits(const at::Tensor& hidden) const override {
    at::Tensor result = at::linear(at::tanh(hidden), projection).to(at::kFloat);
    most_rows = std::max(most_rows, hidden.size(0));
    built_graph = built_graph || result.requires_grad();
    return result;
  }
};

/// The mean over i < tokens - 1 of -log softmax(logits of row i)[token i + 1], ToyHead's arithmetic included,
/// as written, in double.
double plain_loss(const ToyHead& head, const at::Tensor& hidden) {
  const auto rows = hidden.accessor<double, 2>();
  const auto projection = head.projection.accessor<double, 2>();
  double sum = 0;
  for (std::size_t i = 0; i + 1 < kTokens.size(); ++i) {
    std::vector<double> logits(kVocabulary, 0.0);
    double normaliser = 0;
    for (std::int64_t word = 0; word < kVocabulary; ++word) {
      for (std::int64_t d = 0; d < kHidden; ++d)
        logits[word] += projection[word][d] * std::tanh(rows[static_cast<std::int64_t>(i)][d]);
      normaliser += std::exp(logits[word]);
    }
    sum -= std::log(std::exp(logits[kTokens[i + 1]]) / normaliser);
  }
  return sum / static_cast<double>(kTokens.size() - 1);
}

double largest(const at::Tensor& x) {
  return x.abs().max().item<double>();
}

class HeadLossOfAToy : public testing::Test {
 protected:
  ToyHead head_;
  at::Tensor hidden_ = random(2, {static_cast<std::int64_t>(kTokens.size()), kHidden});
};

TEST_F(HeadLossOfAToy, IsTheMeanCrossEntropyOfTheNextTokens) {
  // Logits and log-softmax are float32: a few of its roundings, 6e-8 each, remain of an exact agreement.
  const double expected = plain_loss(head_, hidden_);
  EXPECT_NEAR(head_loss(head_, hidden_, kTokens, true, 512).loss, expected, 1e-6 * expected);
}

TEST_F(HeadLossOfAToy, GradientEqualsCentralDifferences) {
  // Of the loss in double: the float32 one is too coarse to be differenced. The softmax inside the gradient
  // itself is float32, hence 1e-6.
  constexpr double kStep = 1e-5;
  at::Tensor expected = at::zeros_like(hidden_);
  for (std::int64_t i = 0; i < hidden_.numel(); ++i) {
    const at::Tensor above = hidden_.clone(), below = hidden_.clone();
    above.view(-1)[i] += kStep;
    below.view(-1)[i] -= kStep;
    expected.view(-1)[i] = (plain_loss(head_, above) - plain_loss(head_, below)) / (2 * kStep);
  }
  const at::Tensor actual = head_loss(head_, hidden_, kTokens, true, 512).hidden_gradient;
  ASSERT_EQ(actual.sizes(), hidden_.sizes());
  ASSERT_EQ(actual.scalar_type(), at::kDouble);
  EXPECT_LE(largest(actual - expected), 1e-6 * largest(expected));
}

TEST_F(HeadLossOfAToy, LastPositionPredictsNothing) {
  const HeadLoss result = head_loss(head_, hidden_, kTokens, true, 512);
  const at::Tensor last = result.hidden_gradient[-1];
  EXPECT_TRUE(at::equal(last, at::zeros_like(last)));
  EXPECT_GT(result.hidden_gradient.slice(0, 0, -1).abs().amax(1).min().item<double>(), 0);  // the others do

  hidden_[-1].fill_(std::numeric_limits<double>::quiet_NaN());
  const HeadLoss without = head_loss(head_, hidden_, kTokens, true, 512);
  EXPECT_EQ(without.loss, result.loss);
  EXPECT_TRUE(at::equal(without.hidden_gradient, result.hidden_gradient));
}

TEST_F(HeadLossOfAToy, DoesNotDependOnTheRowsAtOnce) {
  const HeadLoss expected = head_loss(head_, hidden_, kTokens, true, 512);
  for (const std::int64_t rows : {1, 2, 3, 7, 8, 1000}) {
    SCOPED_TRACE(rows);
    head_.most_rows = 0;
    const HeadLoss result = head_loss(head_, hidden_, kTokens, true, rows);
    EXPECT_NEAR(result.loss, expected.loss, 1e-12);
    EXPECT_LE(largest(result.hidden_gradient - expected.hidden_gradient), 1e-12);
    EXPECT_EQ(head_.most_rows, std::min<std::int64_t>(rows, 7));  // no more logits at once than asked for
  }
}

TEST_F(HeadLossOfAToy, WithoutGradientIsTheSameLossAndNoGraph) {
  const HeadLoss expected = head_loss(head_, hidden_, kTokens, true, 512);
  ASSERT_TRUE(head_.built_graph);
  head_.built_graph = false;
  const HeadLoss result = head_loss(head_, hidden_.detach().requires_grad_(true), kTokens, false, 512);
  EXPECT_NEAR(result.loss, expected.loss, 1e-12);
  EXPECT_FALSE(result.hidden_gradient.defined());
  EXPECT_FALSE(head_.built_graph);
}

TEST_F(HeadLossOfAToy, GradientHasNoGraphAndNobodyElseGetsOne) {
  const HeadLoss result = head_loss(head_, hidden_, kTokens, true, 512);
  EXPECT_FALSE(result.hidden_gradient.requires_grad());
  EXPECT_FALSE(hidden_.requires_grad());
  EXPECT_FALSE(hidden_.grad().defined());
  EXPECT_FALSE(head_.projection.requires_grad());
  EXPECT_FALSE(head_.projection.grad().defined());
}

TEST_F(HeadLossOfAToy, WorksWhereTheCallerBuildsNoGraph) {
  const HeadLoss expected = head_loss(head_, hidden_, kTokens, true, 512);
  const at::NoGradGuard no_graph;
  const HeadLoss result = head_loss(head_, hidden_, kTokens, true, 512);
  EXPECT_EQ(result.loss, expected.loss);
  EXPECT_TRUE(at::equal(result.hidden_gradient, expected.hidden_gradient));
  EXPECT_FALSE(at::GradMode::is_enabled());  // left as it was
}

TEST_F(HeadLossOfAToy, OfAHeadThatKnowsNothingIsTheLogarithmOfTheVocabulary) {
  head_.projection.zero_();
  EXPECT_NEAR(head_loss(head_, hidden_, kTokens, false, 512).loss, std::log(kVocabulary), 1e-6);
}

TEST_F(HeadLossOfAToy, IsFiniteWhereExpOfALogitIsNot) {
  head_.projection *= 1e4;
  const HeadLoss result = head_loss(head_, hidden_, kTokens, true, 512);
  EXPECT_TRUE(std::isfinite(result.loss));
  EXPECT_GT(result.loss, 1e3);
  EXPECT_TRUE(at::isfinite(result.hidden_gradient).all().item<bool>());
}

TEST_F(HeadLossOfAToy, NeedsTwoTokensAndAHiddenStateForEach) {
  const std::span<const std::int32_t> tokens = kTokens;
  for (const bool with_gradient : {false, true}) {
    const auto loss = [&](std::int64_t rows, std::size_t ids) {
      return head_loss(head_, hidden_.slice(0, 0, rows), tokens.first(ids), with_gradient, 512).loss;
    };
    EXPECT_NO_THROW((void)loss(2, 2));
    EXPECT_THROW((void)head_loss(head_, hidden_, kTokens, with_gradient, 0), base::Error);
    EXPECT_THROW((void)loss(1, 1), base::Error);
    EXPECT_THROW((void)loss(0, 0), base::Error);
    EXPECT_THROW((void)loss(2, 3), base::Error);
    EXPECT_THROW((void)loss(3, 2), base::Error);
  }
}

}  // namespace
}  // namespace kvcal::fisher
