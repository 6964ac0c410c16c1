#include "calib/model/parts/attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <ATen/Parallel.h>
#include <array>
#include <cmath>

#include "base/error.h"

namespace kvcal::calib {
namespace {

// The definition, with the whole matrix of logits, in double.
at::Tensor plain_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           std::int64_t window) {
  const std::int64_t group = q.size(1) / k.size(1);
  const auto by_head = [&](const at::Tensor& x) { return x.repeat_interleave(group, 1).transpose(0, 1); };
  const at::Tensor query = at::arange(q.size(0)).unsqueeze(1), key = at::arange(q.size(0)).unsqueeze(0);
  at::Tensor hidden = key.gt(query);
  if (window > 0) hidden = hidden.logical_or(key.le(query - window));
  const at::Tensor logits = at::matmul(q.transpose(0, 1), by_head(k).transpose(1, 2)) / std::sqrt(q.size(2));
  const at::Tensor weights = at::softmax(logits.masked_fill(hidden, -INFINITY), -1);
  return at::matmul(weights, by_head(v)).transpose(0, 1).reshape({q.size(0), -1});
}

struct AttentionCase {
  std::int64_t tokens, window, key_dim = 8, value_dim = 8, heads = 4, kv_heads = 2;
};

std::ostream& operator<<(std::ostream& out, const AttentionCase& at) {
  return out << at.tokens << " tokens, window " << at.window << ", dimensions " << at.key_dim << " and "
             << at.value_dim;
}

class CausalAttention : public testing::TestWithParam<AttentionCase> {
 protected:
  // How far the result and the gradients of queries, keys and values are from the definition, each relative
  // to its largest number, or to 1: a query that sees one key has no gradient.
  [[nodiscard]] static std::array<double, 4> errors(at::ScalarType dtype) {
    const AttentionCase at = GetParam();
    at::manual_seed(1);
    std::array<at::Tensor, 3> ours, exact;
    for (int i = 0; i < 3; ++i) {
      const at::Tensor x =
          at::randn({at.tokens, i == 0 ? at.heads : at.kv_heads, i == 2 ? at.value_dim : at.key_dim});
      ours[i] = x.to(dtype).requires_grad_(true);
      exact[i] = ours[i].detach().to(at::kDouble).requires_grad_(true);
    }
    const at::Tensor slope = at::randn({at.tokens, at.heads * at.value_dim}).to(dtype);
    const at::Tensor result = causal_attention(ours[0], ours[1], ours[2], at.window);
    const at::Tensor expected = plain_attention(exact[0], exact[1], exact[2], at.window);
    result.backward(slope);
    expected.backward(slope.to(at::kDouble));
    const auto error = [](const at::Tensor& got, const at::Tensor& want) {
      return ((got.to(at::kDouble) - want).abs().max() / want.abs().max().clamp_min(1)).item<double>();
    };
    return {error(result, expected), error(ours[0].grad(), exact[0].grad()),
            error(ours[1].grad(), exact[1].grad()), error(ours[2].grad(), exact[2].grad())};
  }
};

TEST_P(CausalAttention, EqualsTheDefinitionInFloat32) {
  for (const double error : errors(at::kFloat)) EXPECT_LT(error, 3e-6);
}

TEST_P(CausalAttention, EqualsTheDefinitionInBfloat16ToItsPrecision) {
  for (const double error : errors(at::kBFloat16)) EXPECT_LT(error, 0.02);
}

// 64 rows and 512 columns are a block; 256 queries share a mask in libtorch's way.
INSTANTIATE_TEST_SUITE_P(Windows, CausalAttention,
                         testing::Values(AttentionCase{1, 0}, AttentionCase{2, 0}, AttentionCase{3, 1},
                                         AttentionCase{64, 0}, AttentionCase{65, 0}, AttentionCase{300, 0},
                                         AttentionCase{300, 1}, AttentionCase{300, 7},
                                         AttentionCase{300, 255}, AttentionCase{300, 256},
                                         AttentionCase{300, 257}, AttentionCase{300, 300},
                                         AttentionCase{300, 1000}, AttentionCase{513, 0},
                                         AttentionCase{1201, 0}, AttentionCase{1201, 100},
                                         AttentionCase{1201, 513}, AttentionCase{1024, 600}));
INSTANTIATE_TEST_SUITE_P(Shapes, CausalAttention,
                         testing::Values(AttentionCase{130, 0, 64, 64, 9, 3},
                                         AttentionCase{130, 0, 80, 48, 4, 4},
                                         AttentionCase{130, 9, 6, 10, 5, 1},
                                         AttentionCase{131, 0, 7, 5, 2, 1},
                                         AttentionCase{600, 0, 256, 256, 2, 1}));

TEST_P(CausalAttention, OfTheLastTokenAloneIsItsRow) {
  const AttentionCase at = GetParam();
  at::manual_seed(2);
  const at::Tensor q = at::randn({at.tokens, at.heads, at.key_dim});
  const at::Tensor k = at::randn({at.tokens, at.kv_heads, at.key_dim});
  const at::Tensor v = at::randn({at.tokens, at.kv_heads, at.value_dim});
  const at::Tensor last = causal_attention(q.slice(0, at.tokens - 1), k, v, at.window);
  const at::Tensor whole =
      plain_attention(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), at.window);
  EXPECT_TRUE(at::allclose(last.to(at::kDouble), whole.slice(0, at.tokens - 1), 1e-5, 1e-6));
}

TEST(CausalAttentionOf, SomeQueriesOfMoreTokensIsRefused) {
  const at::Tensor x = at::randn({9, 2, 8});
  EXPECT_THROW((void)causal_attention(x.slice(0, 7), x, x, 0), base::Error);
}

TEST(CausalAttentionOf, LargeLogitsStaysFinite) {
  const at::Tensor q = at::full({200, 1, 8}, 1e4), k = at::randn({200, 1, 8}) * 1e3,
                   v = at::randn({200, 1, 8});
  EXPECT_TRUE(at::allclose(causal_attention(q, k, v, 0).to(at::kDouble),
                           plain_attention(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), 0), 1e-4,
                           1e-4));
}

TEST(CausalAttentionOf, NaNIsNaNFromItsTokenOn) {
  at::Tensor k = at::randn({200, 1, 8});
  k[77][0][3] = NAN;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor result =
        causal_attention(at::ones({200, 1, 8}, dtype), k.to(dtype), at::ones({200, 1, 8}, dtype), 0);
    EXPECT_FALSE(result.slice(0, 0, 77).isnan().any().item<bool>());
    EXPECT_TRUE(result.slice(0, 77).isnan().all().item<bool>());
  }
}

TEST(CausalAttentionOf, AnyNumberOfThreadsIsTheSame) {
  at::manual_seed(4);
  const at::Tensor q = at::randn({700, 6, 16}).requires_grad_(true), k = at::randn({700, 2, 16});
  const int threads = at::get_num_threads();
  std::array<at::Tensor, 2> results, gradients;
  for (int i = 0; i < 2; ++i) {
    at::set_num_threads(1 + 2 * i);
    q.mutable_grad() = at::Tensor();
    results[i] = causal_attention(q, k, k, 0);
    results[i].square().sum().backward();
    gradients[i] = q.grad();
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(results[0].equal(results[1]));
  EXPECT_TRUE(gradients[0].equal(gradients[1]));
}

}  // namespace
}  // namespace kvcal::calib
