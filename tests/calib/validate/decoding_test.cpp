// What decoding is made of: caches that grow, the model's own continuation, and what a comparison makes of them.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "../tiny_run.h"
#include "calib/open_session.h"
#include "calib/validate/attention_shares.h"
#include "calib/validate/comparison.h"
#include "calib/validate/continuation.h"

namespace kvcal::calib {
namespace {

using fisher::CachePoint;
using formats::ThresholdScope;

constexpr std::int64_t kTokens200 = 200, kPrompt = 170;

LayerStorages storages_of(const std::string& name, const std::vector<formats::CachedTensor>& tensors) {
  return layer_storages(name, *make_method(name, nullptr), 0, tensors);
}

at::Tensor stored_whole(const LayerStorages& storages, std::size_t tensor, const at::Tensor& x) {
  const at::Tensor read = at::empty_like(x);
  (void)storages.storages[tensor]->store(
      0, {x.const_data_ptr<float>(), static_cast<std::size_t>(x.numel())},
      {read.mutable_data_ptr<float>(), static_cast<std::size_t>(read.numel())});
  return read;
}

/// Each method's values, and keys at the point where it takes them.
class GrowingCache : public testing::TestWithParam<const char*> {
 protected:
  const std::vector<formats::CachedTensor> tensors_ = {{"key", 2, 64, ThresholdScope::channel},
                                                       {"value", 2, 64, ThresholdScope::token}};
  const LayerStorages storages_ = storages_of(GetParam(), tensors_);
};

TEST_P(GrowingCache, IsAtEachStepWhatTheWholeIsStoredAs) {
  at::manual_seed(3);
  for (const std::size_t tensor : {0U, 1U}) {
    const at::Tensor x = at::randn({kTokens200, 128});
    const bool rotated = storages_.storages[tensor]->point() == CachePoint::rotated;
    GrowingHook hook(storages_, 0, kTokens200);
    for (std::int64_t end = kPrompt; end <= kTokens200; ++end) {
      const std::int64_t first = end == kPrompt ? 0 : end - 1;
      at::Tensor read = hook.show(tensor, CachePoint::cached, x.slice(0, first, end));
      ASSERT_EQ(read.size(0), end);
      if (rotated) {
        EXPECT_TRUE(read.equal(x.slice(0, 0, end)));
        read = hook.show(tensor, CachePoint::rotated, read);
      }
      EXPECT_TRUE(read.equal(stored_whole(storages_, tensor, x.slice(0, 0, end).contiguous()))) << end;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, GrowingCache, testing::Values("int3", "q8_0", "turbo3", "fp8", "kivi2"));

TEST(GrowingCacheOf, KiviIsOfOthersThanItsOwnToken) {
  const LayerStorages kivi = storages_of("kivi2", {{"key", 1, 32, ThresholdScope::channel}});
  EXPECT_FALSE(kivi.storages[0]->by_token());
  const at::Tensor x = at::randn({256, 32});
  EXPECT_FALSE(stored_whole(kivi, 0, x.slice(0, 0, 200).contiguous())
                   .equal(stored_whole(kivi, 0, x).slice(0, 0, 200)));
}

fisher::AttentionInputs some_attention(std::int64_t tokens, std::int64_t window) {
  return {0, at::randn({tokens, 4, 8}), at::randn({tokens, 2, 8}), window, nullptr};
}

// The definition, query by query.
double shared_attention(const fisher::AttentionInputs& inputs, const at::Tensor& keys) {
  const std::int64_t tokens = keys.size(0), queries = std::min<std::int64_t>(64, tokens);
  double sum = 0;
  for (std::int64_t i = 0; i < queries; ++i) {
    const std::int64_t at = (i + 1) * tokens / queries - 1;
    const std::int64_t first = inputs.window > 0 ? std::max<std::int64_t>(0, at - inputs.window + 1) : 0;
    for (std::int64_t head = 0; head < 4; ++head) {
      const auto shares = [&](const at::Tensor& of) {
        const at::Tensor seen = of.slice(0, first, at + 1).select(1, head / 2).to(at::kDouble);
        return (seen.mv(inputs.queries[at][head].to(at::kDouble)) / std::sqrt(8.0)).softmax(0);
      };
      sum += at::minimum(shares(inputs.keys), shares(keys)).sum().item<double>();
    }
  }
  return sum;
}

TEST(AttentionSharesOf, KeysThatMovedAreTheDefinition) {
  at::manual_seed(8);
  for (const auto& [tokens, window] : {std::pair{300, 0}, std::pair{300, 17}, std::pair{5, 0}}) {
    const fisher::AttentionInputs inputs = some_attention(tokens, window);
    const at::Tensor moved = inputs.keys + 0.5 * at::randn_like(inputs.keys);
    const AttentionShares exact(inputs, inputs.keys), ours(inputs, moved);
    EXPECT_EQ(exact.count(), 4 * std::min(64, tokens));
    EXPECT_NEAR(exact.shared_with(ours), shared_attention(inputs, moved), 1e-4) << tokens << ", " << window;
    EXPECT_NEAR(exact.shared_with(exact), static_cast<double>(exact.count()), 1e-4);
    EXPECT_LT(exact.shared_with(ours), 0.95 * static_cast<double>(exact.count()));
  }
}

/// A tiny model's session, with windows of kLength tokens.
class DecodingOfATinyModel : public testing::Test {
 protected:
  DecodingOfATinyModel() : folder_(fs::temp_directory_path() / base::concat("kvcal-decoding-", ::getpid())) {
    write_model(folder_ / "model");
    write_tokens(folder_ / "tokens.npy");
    session_ = open_session((folder_ / "model").string(), DtypeChoice::float32, 2);
    session_.windows = load_tokens(folder_ / "tokens.npy", kVocabulary);
  }
  ~DecodingOfATinyModel() override { fs::remove_all(folder_); }

  [[nodiscard]] TokenWindows continued(std::int64_t tokens, std::int64_t memory_bytes) {
    return continue_windows(session_, session_.windows,
                            {.tokens = tokens, .lanes = 2, .memory_bytes = memory_bytes, .scratch = folder_},
                            progress_);
  }

  // Of the whole sequence at once.
  [[nodiscard]] at::Tensor logits(std::span<const std::int32_t> tokens) const {
    const at::NoGradGuard no_graph;
    at::Tensor hidden = session_.model->embed(tokens);
    for (int layer = 0; layer < kLayers; ++layer)
      hidden = session_.model->load_block(layer)->forward(hidden, nullptr);
    return session_.model->load_head()->logits(hidden);
  }

  [[nodiscard]] std::vector<MethodCost> compared(const TokenWindows& windows, const char* method,
                                                 std::int64_t decoded) {
    std::vector<NamedMethod> methods;
    methods.push_back({kFullPrecision, nullptr});
    methods.push_back({method, make_method(method, nullptr)});
    ComparisonOptions options{.decoded = decoded, .lanes = 2, .memory_bytes = 1 << 20, .scratch = folder_};
    for (std::int64_t w = 0; w < windows.samples; ++w)
      options.first_scored.push_back(static_cast<std::int64_t>(windows.sample(w).size()) - 9);
    return compare(session_, windows, methods, nullptr, options, progress_);
  }

  fs::path folder_;
  Session session_;
  base::Progress progress_;
};

TEST_F(DecodingOfATinyModel, WritesWhatItThinksLikeliest) {
  const TokenWindows windows = continued(8, 1 << 20);
  for (std::int64_t w = 0; w < kSamples; ++w) {
    const auto was = session_.windows.sample(w), is = windows.sample(w);
    ASSERT_EQ(is.size(), was.size());
    const std::size_t prompt = was.size() - 8;
    EXPECT_TRUE(std::ranges::equal(is.first(prompt), was.first(prompt)));
    const at::Tensor likeliest = logits(is).argmax(-1);
    for (std::size_t i = prompt; i < is.size(); ++i)
      EXPECT_EQ(is[i], likeliest[static_cast<std::int64_t>(i) - 1].item<std::int64_t>()) << w << ", " << i;
  }
}

TEST_F(DecodingOfATinyModel, WritesTheSameWithoutMemory) {
  EXPECT_EQ(continued(8, 1 << 20).ids, continued(8, 0).ids);
}

TEST_F(DecodingOfATinyModel, ByTokenIsTheWholeWindowAtOnce) {
  const TokenWindows windows = continued(8, 1 << 20);
  const auto decoded = compared(windows, "int3", 8), whole = compared(windows, "int3", 0);
  EXPECT_NEAR(decoded[1].score.divergence_mean, whole[1].score.divergence_mean,
              1e-4 * whole[1].score.divergence_mean);
  EXPECT_GT(decoded[1].score.divergence_mean, 1e-4);
  EXPECT_EQ(summarise_positions(decoded[1].windows).size(), 8U);
  // What full precision wrote it would choose again.
  for (const WindowScores& window : decoded[0].windows)
    EXPECT_EQ(window.recalled, std::vector<std::uint8_t>(8, 1));
}

/// Stores keys of one layer as NaN.
class NaNStorage final : public TensorStorage {
 public:
  [[nodiscard]] CachePoint point() const override { return CachePoint::cached; }
  StorageUse store(std::int64_t /*first*/, std::span<const float> x, std::span<float> read) const override {
    std::ranges::fill(read, NAN);
    return {0, static_cast<std::int64_t>(x.size()), 0, 0};
  }
  [[nodiscard]] std::int64_t expected_bytes(std::int64_t /*tokens*/) const override { return 0; }
};
class NaNMethod final : public CacheMethod {
 public:
  [[nodiscard]] std::unique_ptr<TensorStorage> storage(
      int layer, const formats::CachedTensor& /*tensor*/) const override {
    return layer == 1 ? std::make_unique<NaNStorage>() : nullptr;
  }
};

TEST_F(DecodingOfATinyModel, NaNNamesMethodLayerAndWindow) {
  std::vector<NamedMethod> methods;
  methods.push_back({kFullPrecision, nullptr});
  methods.push_back({"broken", std::make_unique<NaNMethod>()});
  ComparisonOptions options{.first_scored = std::vector<std::int64_t>(kSamples), .memory_bytes = 1 << 20};
  try {
    (void)compare(session_, session_.windows, methods, nullptr, options, progress_);
    FAIL() << "NaN was not seen";
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("broken, layer 1"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace kvcal::calib
