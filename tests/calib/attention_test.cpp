#include "calib/attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace kvcal::calib {
namespace {

// The definition, one query head at a time, in double.
at::Tensor plain_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           std::int64_t window) {
  const std::int64_t tokens = q.size(0), heads = q.size(1), group = heads / k.size(1);
  at::Tensor out = at::zeros({tokens, heads, v.size(2)}, at::kDouble);
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int64_t first = window > 0 ? std::max<std::int64_t>(0, t - window + 1) : 0;
      const auto keys = k.select(1, h / group).slice(0, first, t + 1).to(at::kDouble);
      const auto scores =
          at::matmul(keys, q[t][h].to(at::kDouble)) / std::sqrt(static_cast<double>(q.size(2)));
      out[t][h] =
          at::matmul(at::softmax(scores, 0), v.select(1, h / group).slice(0, first, t + 1).to(at::kDouble));
    }
  }
  return out.reshape({tokens, -1});
}

class CausalAttention : public testing::TestWithParam<std::int64_t> {};

TEST_P(CausalAttention, EqualsTheDefinition) {
  at::manual_seed(1);
  // 300 tokens are more than one block of queries where a window cuts.
  const at::Tensor q = at::randn({300, 4, 8}), k = at::randn({300, 2, 8}), v = at::randn({300, 2, 8});
  const at::Tensor ours = causal_attention(q, k, v, GetParam()).to(at::kDouble);
  EXPECT_TRUE(at::allclose(ours, plain_attention(q, k, v, GetParam()), 1e-5, 1e-5));
}

INSTANTIATE_TEST_SUITE_P(Windows, CausalAttention, testing::Values(0, 1, 7, 255, 256, 257, 300, 1000));

TEST(CausalAttention, GradientOfASharedKeyIsTheSumOverItsQueryHeads) {
  at::manual_seed(2);
  const at::Tensor q = at::randn({9, 4, 8}), v = at::randn({9, 1, 8});
  at::Tensor shared = at::randn({9, 1, 8}).requires_grad_(true);
  at::Tensor apart = shared.detach().expand({9, 4, 8}).contiguous().requires_grad_(true);
  causal_attention(q, shared, v, 0).square().sum().backward();
  causal_attention(q, apart, v.expand({9, 4, 8}).contiguous(), 0).square().sum().backward();
  EXPECT_TRUE(at::allclose(shared.grad(), apart.grad().sum(1, true), 1e-4, 1e-5));
}

}  // namespace
}  // namespace kvcal::calib
