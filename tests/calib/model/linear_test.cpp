#include "calib/model/parts/linear.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

namespace kvcal::calib {
namespace {

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

class LinearTest : public testing::TestWithParam<std::tuple<at::ScalarType, bool>> {};

TEST_P(LinearTest, IsTheProductAndItsGradient) {
  const auto [dtype, with_bias] = GetParam();
  at::manual_seed(3);
  const at::Tensor x = at::randn({37, 64}).to(dtype);
  const at::Tensor weight = at::randn({50, 64}).to(dtype);
  const at::Tensor bias = with_bias ? at::randn({50}).to(dtype) : at::Tensor();
  const at::Tensor gradient = at::randn({37, 50}).to(dtype);
  at::Tensor expected = at::mm(x.to(at::kDouble), weight.to(at::kDouble).t());
  if (with_bias) expected += bias.to(at::kDouble);
  // Sums of 64 products of a size of 1.
  const double tolerance = dtype == at::kFloat ? 1e-4 : 0.2;

  const at::AutoGradMode graph(true);
  const at::Tensor leaf = x.detach().requires_grad_(true);
  const at::Tensor result = fixed_linear(leaf, weight, bias);
  EXPECT_EQ(result.scalar_type(), dtype);
  EXPECT_LE(largest_difference(result.detach(), expected), tolerance);
  const auto gradients = torch::autograd::grad({result}, {leaf}, {gradient});
  EXPECT_LE(largest_difference(gradients[0], at::mm(gradient.to(at::kDouble), weight.to(at::kDouble))),
            tolerance);

  const at::NoGradGuard no_graph;
  EXPECT_TRUE(at::equal(fixed_linear(x, weight, bias), result));
  EXPECT_FALSE(fixed_linear(leaf, weight, bias).requires_grad());
}

INSTANTIATE_TEST_SUITE_P(Types, LinearTest,
                         testing::Combine(testing::Values(at::kFloat, at::kBFloat16), testing::Bool()));

}  // namespace
}  // namespace kvcal::calib
