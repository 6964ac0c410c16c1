// tests/calib/engine/toy_family.h: a family that only the tests know: its layers cache other tensors than keys and
// values, each others than the layer before.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <array>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "calib/model/model.h"
#include "fisher/block.h"
#include "formats/codebook.h"

namespace kvcal::calib::toy {

using fisher::CachePoint;
using formats::CachedTensor;
using formats::ThresholdScope;

inline constexpr int kLayers = 4, kSinks = 1, kThreads = 2;
inline constexpr std::int64_t kHidden = 16, kVocabulary = 11, kSamples = 3, kLength = 24;
inline constexpr const char* kIdentity = R"({"family": "toy"})";

// What the layers cache: two in turn, and the last nothing of its own.
inline const CachedTensor kKey = {"key", 2, 6, ThresholdScope::channel};
inline const CachedTensor kValue = {"value", 2, 4, ThresholdScope::token};
inline const CachedTensor kGate = {"gate", 3, 2, ThresholdScope::channel};
inline const CachedTensor kLatent = {"latent", 1, 5, ThresholdScope::token};
inline const std::array<std::vector<CachedTensor>, kLayers> kCaches = {
    {{kKey, kValue, kGate}, {kLatent}, {kKey, kValue, kGate}, {}}};

/// Weights that are the same in every run.
class Random {
 public:
  at::Tensor normal(std::int64_t rows, std::int64_t columns) {
    return at::randn({rows, columns}, generator_, at::kFloat);
  }
  /// [in, out]; what it makes of normal numbers has a deviation of 0.6.
  at::Tensor weight(std::int64_t in, std::int64_t out) {
    return normal(in, out) * (0.6 / std::sqrt(static_cast<double>(in)));
  }

 private:
  at::Generator generator_ = at::detail::createCPUGenerator(17);
};

inline at::Tensor shown(fisher::CacheHook* hook, std::size_t tensor, CachePoint point, const at::Tensor& x) {
  return hook == nullptr ? x : hook->show(tensor, point, x);
}

/// [tokens, heads * dim] -> [heads, tokens, dim]
inline at::Tensor by_head(const at::Tensor& x, int heads) {
  return x.reshape({x.size(0), heads, -1}).transpose(0, 1);
}

/// scores: [..., tokens, tokens]. A token attends to itself and to those before it.
inline at::Tensor causal_weights(const at::Tensor& scores) {
  const at::Tensor later = at::ones({scores.size(-1), scores.size(-1)}, at::kBool).triu(1);
  return at::softmax(scores.masked_fill(later, -std::numeric_limits<float>::infinity()), -1);
}

/// Turns the two halves of each of the key's heads against each other, by angles that grow with the position.
inline at::Tensor rotate(const at::Tensor& x) {
  const at::Tensor speeds = at::tensor({1.0F, 0.3F, 0.1F});
  const at::Tensor angles = (at::arange(x.size(0), at::kFloat).unsqueeze(1) * speeds).unsqueeze(1);
  const at::Tensor halves = x.reshape({x.size(0), kKey.heads, 2, kKey.dim / 2});
  const at::Tensor first = halves.select(2, 0), second = halves.select(2, 1);
  return at::stack(
             {first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()}, 2)
      .reshape_as(x);
}

/// A layer that can be loaded again and again.
struct ToyBlock : fisher::Block {
  [[nodiscard]] virtual std::unique_ptr<fisher::Block> copy() const = 0;
};

/// Attention whose result is gated by the running mean of a third cached tensor.
struct GatedBlock final : ToyBlock {
  explicit GatedBlock(Random& random)
      : query(random.weight(kHidden, kKey.channels())),
        key(random.weight(kHidden, kKey.channels())),
        value(random.weight(kHidden, kValue.channels())),
        gate(random.weight(kHidden, kGate.channels())),
        gate_output(random.weight(kGate.channels(), kValue.channels())),
        output(random.weight(kValue.channels(), kHidden)) {}

  [[nodiscard]] std::unique_ptr<fisher::Block> copy() const override {
    return std::make_unique<GatedBlock>(*this);
  }
  [[nodiscard]] at::Tensor forward(const at::Tensor& hidden, fisher::CacheHook* hook) const override {
    at::Tensor keys = shown(hook, 0, CachePoint::cached, at::matmul(hidden, key));
    const at::Tensor values = shown(hook, 1, CachePoint::cached, at::matmul(hidden, value));
    const at::Tensor gates = shown(hook, 2, CachePoint::cached, at::matmul(hidden, gate));
    keys = shown(hook, 0, CachePoint::rotated, rotate(keys));
    const at::Tensor queries = by_head(rotate(at::matmul(hidden, query)), kKey.heads);
    const at::Tensor scores =
        at::matmul(queries, by_head(keys, kKey.heads).transpose(1, 2)) / std::sqrt(double{6});
    const at::Tensor attended = at::matmul(causal_weights(scores), by_head(values, kValue.heads))
                                    .transpose(0, 1)
                                    .reshape({hidden.size(0), kValue.channels()});
    const at::Tensor counts = at::arange(1, hidden.size(0) + 1, at::kFloat).unsqueeze(1);
    const at::Tensor open = at::sigmoid(at::matmul(gates.cumsum(0) / counts, gate_output));
    return hidden + at::matmul(attended * open, output);
  }

  at::Tensor query, key, value, gate, gate_output, output;
};

/// Attention that reads one tensor as keys and as values.
struct LatentBlock final : ToyBlock {
  explicit LatentBlock(Random& random)
      : query(random.weight(kHidden, kLatent.channels())),
        latent(random.weight(kHidden, kLatent.channels())),
        output(random.weight(kLatent.channels(), kHidden)) {}

  [[nodiscard]] std::unique_ptr<fisher::Block> copy() const override {
    return std::make_unique<LatentBlock>(*this);
  }
  [[nodiscard]] at::Tensor forward(const at::Tensor& hidden, fisher::CacheHook* hook) const override {
    const at::Tensor latents = shown(hook, 0, CachePoint::cached, at::matmul(hidden, latent));
    const at::Tensor scores = at::matmul(at::matmul(hidden, query), latents.t());
    return hidden + at::matmul(at::tanh(at::matmul(causal_weights(scores), latents)), output);
  }

  at::Tensor query, latent, output;
};

/// Caches nothing.
struct PlainBlock final : ToyBlock {
  explicit PlainBlock(Random& random)
      : input(random.weight(kHidden, kHidden)), output(random.weight(kHidden, kHidden)) {}

  [[nodiscard]] std::unique_ptr<fisher::Block> copy() const override {
    return std::make_unique<PlainBlock>(*this);
  }
  [[nodiscard]] at::Tensor forward(const at::Tensor& hidden, fisher::CacheHook* /*hook*/) const override {
    return hidden + at::matmul(at::tanh(at::matmul(hidden, input)), output);
  }

  at::Tensor input, output;
};

struct ToyHead final : fisher::Head {
  explicit ToyHead(at::Tensor projection_in) : projection(std::move(projection_in)) {}
  [[nodiscard]] at::Tensor logits(const at::Tensor& hidden) const override {
    return at::matmul(hidden, projection);
  }

  at::Tensor projection;
};

/// Reads none of the checkpoint, whose only tensor it names so that the passes have one to check.
class ToyModel final : public Model {
 public:
  ToyModel() {
    positions_.select(0, 0).mul_(6);  // so that the first token, the sink, is unlike the others
    config_.architecture = "ToyForCausalLM";
    config_.hidden_size = kHidden;
    config_.vocab_size = kVocabulary;
    config_.layers.resize(kLayers);
    config_.fingerprint_json = R"({"family": "toy"})";
  }

  [[nodiscard]] const ModelConfig& config() const override { return config_; }
  [[nodiscard]] std::vector<CachedTensor> cache(int layer) const override {
    return kCaches.at(static_cast<std::size_t>(layer));
  }
  [[nodiscard]] at::Tensor embed(std::span<const std::int32_t> tokens) const override {
    const std::vector<std::int64_t> ids(tokens.begin(), tokens.end());
    return embedding_.index_select(0, at::tensor(at::ArrayRef<std::int64_t>(ids))) +
           positions_.slice(0, 0, static_cast<std::int64_t>(ids.size()));
  }
  [[nodiscard]] std::unique_ptr<fisher::Block> load_block(int layer) const override {
    const std::array<const ToyBlock*, kLayers> blocks = {&first_, &second_, &third_, &fourth_};
    return blocks.at(static_cast<std::size_t>(layer))->copy();
  }
  [[nodiscard]] std::unique_ptr<fisher::Head> load_head() const override {
    return std::make_unique<ToyHead>(projection_);
  }
  [[nodiscard]] std::vector<TensorSpec> embedding_weights() const override { return {{"toy", {2, 3}}}; }
  [[nodiscard]] std::vector<TensorSpec> block_weights(int /*layer*/) const override {
    return {{"toy", {2, 3}}};
  }
  [[nodiscard]] std::vector<TensorSpec> head_weights() const override { return {{"toy", {2, 3}}}; }

  [[nodiscard]] const LatentBlock& latent_block() const { return second_; }

 private:
  ModelConfig config_;
  Random random_;
  at::Tensor embedding_ = random_.normal(kVocabulary, kHidden);
  at::Tensor positions_ = random_.normal(kLength, kHidden);
  GatedBlock first_{random_};
  LatentBlock second_{random_};
  GatedBlock third_{random_};
  PlainBlock fourth_{random_};
  at::Tensor projection_ = random_.weight(kHidden, kVocabulary);
};

}  // namespace kvcal::calib::toy
