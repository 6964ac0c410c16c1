#include "fisher/block_gradients.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"

namespace kvcal::fisher {
namespace {

constexpr std::size_t kKeys = 0, kValues = 1, kCached = 2;
constexpr std::int64_t kTokens = 5, kHidden = 4, kKeyDim = 3, kValueDim = 2;

at::Tensor random(std::uint64_t seed, at::IntArrayRef shape) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::kDouble);
}

/// A layer with everything that matters to gradients, in double: a residual, queries that see the input too,
/// an output nonlinear in keys and values. The offsets move the tapped tensors themselves.
struct ToyBlock final : Block {
  at::Tensor query_weight = random(1, {kHidden, kKeyDim});
  at::Tensor key_weight = random(2, {kHidden, kKeyDim});
  at::Tensor value_weight = random(3, {kHidden, kValueDim});
  at::Tensor output_weight = random(4, {kValueDim, kHidden});
  at::Tensor key_offset = at::zeros({kTokens, kKeyDim}, at::kDouble);
  at::Tensor value_offset = at::zeros({kTokens, kValueDim}, at::kDouble);

  [[nodiscard]] at::Tensor forward(const at::Tensor& hidden, CacheHook* hook) const override {
    at::Tensor keys = at::matmul(hidden, key_weight) + key_offset;
    at::Tensor values = at::matmul(hidden, value_weight) + value_offset;
    if (hook != nullptr) {
      keys = hook->show(kKeys, CachePoint::cached, keys);
      values = hook->show(kValues, CachePoint::cached, values);
      keys = hook->show(kKeys, CachePoint::rotated, keys * 2) / 2;
    }
    const at::Tensor scores = at::matmul(at::matmul(hidden, query_weight), keys.t());
    const at::Tensor attended = at::matmul(at::softmax(scores, 1), values);
    return hidden + at::matmul(at::tanh(attended), output_weight);
  }

  [[nodiscard]] std::array<at::Tensor, 4> weights() const {
    return {query_weight, key_weight, value_weight, output_weight};
  }
};

/// Keeps what it is shown as cached, and replaces what it has another for.
struct Replacer final : CacheHook {
  std::map<std::size_t, at::Tensor> replacements, seen;

  explicit Replacer(std::map<std::size_t, at::Tensor> others) : replacements(std::move(others)) {}
  at::Tensor show(std::size_t tensor, CachePoint point, const at::Tensor& x) override {
    if (point != CachePoint::cached) return x;
    seen[tensor] = x;
    return replacements.contains(tensor) ? replacements.at(tensor) : x;
  }
};

/// Shows only what it is told to.
struct SilentBlock final : Block {
  bool shows_keys, shows_values;

  SilentBlock(bool keys, bool values) : shows_keys(keys), shows_values(values) {}
  [[nodiscard]] at::Tensor forward(const at::Tensor& hidden, CacheHook* hook) const override {
    at::Tensor keys = hidden * 2, values = hidden * 3;
    if (hook != nullptr && shows_keys) keys = hook->show(kKeys, CachePoint::cached, keys);
    if (hook != nullptr && shows_values) values = hook->show(kValues, CachePoint::cached, values);
    return hidden + keys * values;
  }
};

/// Sees whether a graph was built through the block that it wraps.
struct WatchingBlock final : Block {
  const Block& inner;
  mutable int forwards = 0;
  mutable bool built_graph = false;

  explicit WatchingBlock(const Block& block) : inner(block) {}
  [[nodiscard]] at::Tensor forward(const at::Tensor& hidden, CacheHook* hook) const override {
    at::Tensor output = inner.forward(hidden, hook);
    ++forwards;
    built_graph = built_graph || output.requires_grad();
    return output;
  }
};

/// The gradient of a scalar function at `point`, by central differences. The step balances the rounding of a
/// double against the cubic term: an error of about 1e-10 remains.
template <typename Function>
at::Tensor central_differences(const at::Tensor& point, const Function& function) {
  constexpr double kStep = 1e-5;
  at::Tensor gradient = at::zeros_like(point);
  for (std::int64_t i = 0; i < point.numel(); ++i) {
    const at::Tensor above = point.clone(), below = point.clone();
    above.view(-1)[i] += kStep;
    below.view(-1)[i] -= kStep;
    gradient.view(-1)[i] = (function(above) - function(below)) / (2 * kStep);
  }
  return gradient;
}

/// Of one shape and type, and nowhere further apart than 1e-6 of the largest expected element.
testing::AssertionResult close(const at::Tensor& actual, const at::Tensor& expected) {
  if (!actual.defined() || actual.sizes() != expected.sizes() ||
      actual.scalar_type() != expected.scalar_type()) {
    return testing::AssertionFailure() << "undefined, or of another shape or type";
  }
  const double largest = expected.abs().max().item<double>();
  const double difference = (actual - expected).abs().max().item<double>();
  if (largest > 0 && difference <= 1e-6 * largest) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "differs by " << difference << " where the largest is " << largest;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() == b.defined() && (!a.defined() || at::equal(a, b));
}

bool same_bits(const BlockGradients& a, const BlockGradients& b) {
  const auto all = [](const std::vector<at::Tensor>& left, const std::vector<at::Tensor>& right) {
    return std::ranges::equal(left, right,
                              [](const at::Tensor& l, const at::Tensor& r) { return same_bits(l, r); });
  };
  return all(a.cached, b.cached) && all(a.gradients, b.gradients) &&
         same_bits(a.input_gradient, b.input_gradient);
}

class BlockGradientsOfAToy : public testing::Test {
 protected:
  // The scalar whose gradients block_gradients() takes.
  [[nodiscard]] double product(const Block& block, const at::Tensor& input) const {
    return (block.forward(input, nullptr) * output_gradient_).sum().item<double>();
  }

  ToyBlock block_;
  at::Tensor input_ = random(5, {kTokens, kHidden});
  at::Tensor output_gradient_ = random(6, {kTokens, kHidden});
};

TEST_F(BlockGradientsOfAToy, EqualCentralDifferences) {
  // Not at zero offsets, so that nothing is special about the point.
  block_.key_offset = random(7, {kTokens, kKeyDim});
  block_.value_offset = random(8, {kTokens, kValueDim});
  const BlockGradients gradients = block_gradients(block_, kCached, input_, output_gradient_, true);

  ToyBlock moved = block_;
  EXPECT_TRUE(
      close(gradients.gradients[kKeys], central_differences(block_.key_offset, [&](const auto& offset) {
              moved.key_offset = offset;
              return product(moved, input_);
            })));
  moved = block_;
  EXPECT_TRUE(
      close(gradients.gradients[kValues], central_differences(block_.value_offset, [&](const auto& offset) {
              moved.value_offset = offset;
              return product(moved, input_);
            })));
  // The input acts through residual, queries, keys and values: all of it counts.
  EXPECT_TRUE(close(gradients.input_gradient,
                    central_differences(input_, [&](const auto& input) { return product(block_, input); })));
}

TEST_F(BlockGradientsOfAToy, WithoutInputLeavesItsGradientUndefinedAndTheOthersAsTheyAre) {
  BlockGradients with_input = block_gradients(block_, kCached, input_, output_gradient_, true);
  const BlockGradients without = block_gradients(block_, kCached, input_, output_gradient_, false);
  EXPECT_TRUE(with_input.input_gradient.defined());
  EXPECT_FALSE(without.input_gradient.defined());
  with_input.input_gradient = at::Tensor();
  EXPECT_TRUE(same_bits(without, with_input));
}

TEST_F(BlockGradientsOfAToy, KeysAndValuesAreThoseTheBlockShowed) {
  Replacer shown({});
  (void)block_.forward(input_, &shown);
  const BlockGradients gradients = block_gradients(block_, kCached, input_, output_gradient_, true);
  EXPECT_TRUE(same_bits(gradients.cached[kKeys], shown.seen[kKeys]));
  EXPECT_TRUE(same_bits(gradients.cached[kValues], shown.seen[kValues]));
}

TEST_F(BlockGradientsOfAToy, NothingReturnedHasAGraph) {
  const BlockGradients gradients = block_gradients(block_, kCached, input_, output_gradient_, true);
  for (const at::Tensor& tensor :
       {gradients.cached[kKeys], gradients.cached[kValues], gradients.gradients[kKeys],
        gradients.gradients[kValues], gradients.input_gradient}) {
    EXPECT_FALSE(tensor.requires_grad());
  }
}

TEST_F(BlockGradientsOfAToy, NeitherWeightsNorTheCallersInputGetAGradient) {
  (void)block_gradients(block_, kCached, input_, output_gradient_, true);
  for (const at::Tensor& weight : block_.weights()) {
    EXPECT_FALSE(weight.requires_grad());
    EXPECT_FALSE(weight.grad().defined());
  }
  EXPECT_FALSE(input_.requires_grad());
  EXPECT_FALSE(input_.grad().defined());
}

TEST_F(BlockGradientsOfAToy, NothingIsAddedToWeightsThatCouldTakeAGradient) {
  for (const at::Tensor& weight : block_.weights()) weight.requires_grad_(true);
  const BlockGradients gradients = block_gradients(block_, kCached, input_, output_gradient_, true);
  for (const at::Tensor& weight : block_.weights()) EXPECT_FALSE(weight.grad().defined());
  EXPECT_TRUE(same_bits(gradients, block_gradients(ToyBlock(), kCached, input_, output_gradient_, true)));
}

TEST_F(BlockGradientsOfAToy, WorkWhereTheCallerBuildsNoGraph) {
  const BlockGradients expected = block_gradients(block_, kCached, input_, output_gradient_, true);
  const at::NoGradGuard no_graph;
  EXPECT_TRUE(same_bits(block_gradients(block_, kCached, input_, output_gradient_, true), expected));
  EXPECT_FALSE(at::GradMode::is_enabled());  // left as it was
}

TEST_F(BlockGradientsOfAToy, TwoThreadsAtOneBlockGetWhatOneGets) {
  constexpr int kRounds = 100;
  const std::array<at::Tensor, 2> inputs = {input_, random(9, {kTokens, kHidden})};
  std::array<BlockGradients, 2> expected;
  for (std::size_t i = 0; i < 2; ++i)
    expected[i] = block_gradients(block_, kCached, inputs[i], output_gradient_, true);
  ASSERT_FALSE(same_bits(expected[0], expected[1]));

  std::array<int, 2> agreed = {0, 0};
  std::barrier together(2);
  const auto work = [&](std::size_t i) {
    for (int round = 0; round < kRounds; ++round) {
      together.arrive_and_wait();
      if (same_bits(block_gradients(block_, kCached, inputs[i], output_gradient_, true), expected[i]))
        ++agreed[i];
    }
  };
  { const std::jthread first(work, 0), second(work, 1); }
  EXPECT_EQ(agreed[0], kRounds);
  EXPECT_EQ(agreed[1], kRounds);
}

TEST_F(BlockGradientsOfAToy, TheCacheAloneIsTheSame) {
  const BlockGradients gradients = block_gradients(block_, kCached, input_, output_gradient_, false);
  const BlockGradients cache = block_cache(block_, kCached, input_);
  EXPECT_TRUE(same_bits(cache.cached[kKeys], gradients.cached[kKeys]));
  EXPECT_TRUE(same_bits(cache.cached[kValues], gradients.cached[kValues]));
  EXPECT_TRUE(cache.gradients.empty());
  EXPECT_FALSE(cache.input_gradient.defined());
}

TEST_F(BlockGradientsOfAToy, TheCacheAloneBuildsNoGraph) {
  const WatchingBlock watching(block_);
  const BlockGradients cache = block_cache(watching, kCached, input_.detach().requires_grad_(true));
  EXPECT_EQ(watching.forwards, 1);
  EXPECT_FALSE(watching.built_graph);
  EXPECT_FALSE(cache.cached[kKeys].requires_grad());
  EXPECT_FALSE(cache.cached[kValues].requires_grad());
}

TEST_F(BlockGradientsOfAToy, TheBlockGoesOnWithWhatTheHookReturns) {
  ToyBlock moved = block_;
  moved.key_offset = random(7, {kTokens, kKeyDim});
  Replacer keys({{kKeys, at::matmul(input_, block_.key_weight) + moved.key_offset}});
  EXPECT_TRUE(same_bits(block_.forward(input_, &keys), moved.forward(input_, nullptr)));
}

TEST_F(BlockGradientsOfAToy, AnotherNumberOfCachedTensorsIsAnError) {
  EXPECT_THROW((void)block_cache(block_, 1, input_), base::Error);
  EXPECT_THROW((void)block_cache(block_, 3, input_), base::Error);
}

class BlockThatKeepsSilent : public testing::TestWithParam<std::pair<bool, bool>> {};

TEST_P(BlockThatKeepsSilent, IsAnError) {
  const SilentBlock block(GetParam().first, GetParam().second);
  const at::Tensor input = random(1, {kTokens, kHidden});
  EXPECT_THROW((void)block_gradients(block, kCached, input, input, true), base::Error);
  EXPECT_THROW((void)block_gradients(block, kCached, input, input, false), base::Error);
  EXPECT_THROW((void)block_cache(block, kCached, input), base::Error);
}

INSTANTIATE_TEST_SUITE_P(KeysAndValues, BlockThatKeepsSilent,
                         testing::Values(std::pair(false, false), std::pair(true, false),
                                         std::pair(false, true)));

}  // namespace
}  // namespace kvcal::fisher
