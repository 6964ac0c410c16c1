// That the cache is data: a family that only toy_family.h knows goes through passes, capture, fit and codebook and
// back.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/progress.h"
#include "calib/engine/activation_store.h"
#include "calib/engine/capturer.h"
#include "calib/engine/checkpoints.h"
#include "calib/engine/fit_queue.h"
#include "calib/engine/passes.h"
#include "calib/engine/session.h"
#include "calib/engine/toy_family.h"
#include "calib/engine/work_folder.h"
#include "calib/fit/layer_fit.h"
#include "calib/model/model.h"
#include "calib/plan/resource_need.h"
#include "calib/plan/tensor_memory.h"
#include "fisher/block.h"
#include "formats/codebook.h"
#include "formats/safetensors.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;
using namespace toy;

/// Keeps what it is shown as cached, and lets it keep its gradient where a graph is made.
struct Recorder final : fisher::CacheHook {
  at::Tensor show(std::size_t tensor, CachePoint point, const at::Tensor& x) override {
    if (point != CachePoint::cached) return x;
    if (x.requires_grad()) x.retain_grad();
    EXPECT_TRUE(cached.emplace(tensor, x).second) << "shown twice: " << tensor;
    return x;
  }

  std::map<std::size_t, at::Tensor> cached;
};

/// One sample through the whole model at once, without passes, files or recomputation.
struct PlainSample {
  PlainSample(const Model& model, std::span<const std::int32_t> tokens, bool with_gradients) {
    const at::AutoGradMode graph(with_gradients);
    at::Tensor hidden = model.embed(tokens);
    if (with_gradients) hidden.requires_grad_(true);
    for (int layer = 0; layer < kLayers; ++layer) {
      Recorder recorder;
      hidden = model.load_block(layer)->forward(hidden, &recorder);
      cached.push_back(std::move(recorder.cached));
    }
    const at::Tensor logits = model.load_head()->logits(hidden);
    const std::vector<std::int64_t> targets(tokens.begin() + 1, tokens.end());
    const at::Tensor cross_entropy =
        at::cross_entropy_loss(logits.slice(0, 0, -1), at::tensor(at::ArrayRef<std::int64_t>(targets)));
    if (with_gradients) cross_entropy.backward();
    loss = cross_entropy.item<double>();
  }

  std::vector<std::map<std::size_t, at::Tensor>> cached;  // by layer and place in its list
  double loss = 0;
};

at::Tensor as_tensor(const std::vector<float>& numbers) {
  return at::tensor(at::ArrayRef<float>(numbers)).to(at::kDouble);
}

class ToyFamilyTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("kvcal_toy_family_" + std::to_string(::getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_ / "model");
    const std::array<float, 6> numbers = {1, 2, 3, 4, 5, 6};
    const std::vector<formats::TensorView> tensors = {
        {"toy", formats::Dtype::F32, {2, 3}, std::as_bytes(std::span(numbers)), {}}};
    formats::write_safetensors(root_ / "model/model.safetensors", tensors);

    session_.folder = {root_ / "model", "toy"};
    session_.placement.threads = kThreads;
    session_.weights = std::make_shared<const WeightLoader>(session_.folder.path, session_.placement);
    auto model = std::make_unique<ToyModel>();
    toy_ = model.get();
    session_.model = std::move(model);
    session_.windows.samples = kSamples;
    session_.windows.seqlen = kLength;
    std::mt19937 generator(5);
    for (std::int64_t i = 0; i < kSamples * kLength; ++i)
      session_.windows.ids.push_back(static_cast<std::int32_t>(generator() % kVocabulary));
  }
  void TearDown() override { fs::remove_all(root_); }

  [[nodiscard]] formats::Codebook frame() const {
    formats::Codebook frame;
    frame.created_by = "toy_family_test";
    frame.model.name = session_.folder.name;
    frame.model.architecture = session_.config().architecture;
    frame.model.config_sha256 = session_.config().sha256();
    frame.model.num_layers = kLayers;
    frame.model.num_attention_heads = frame.model.num_kv_heads = kKey.heads;
    frame.model.head_dim = kKey.dim;
    return frame;
  }
  [[nodiscard]] Checkpoints find_checkpoints(const WorkFolder& folder) const {
    CheckpointShape shape = {kLayers, kSamples,
                             activation_file_bytes(kSamples, kSamples * kLength, kHidden, at::kFloat)};
    for (const auto& cache : kCaches) shape.cached.push_back(!cache.empty());
    return WorkFolder::find(folder.path(), kIdentity, shape);
  }

  /// A whole run, as calibrate() puts it together.
  [[nodiscard]] formats::Codebook run() const {
    WorkFolder folder(root_ / "work", kIdentity);
    const RemainingWork left = remaining_work(find_checkpoints(folder), true);
    base::Progress quiet;
    Passes passes(session_, folder, quiet, left,
                  {.with_gradients = true, .lanes = kThreads, .cache_bytes = 1 << 20});
    formats::Codebook codebook = frame();
    passes.forward();
    const std::vector<double> losses = passes.head();
    codebook.calibration.loss = std::accumulate(losses.begin(), losses.end(), 0.0) / double{kSamples};
    FitQueue fits(
        [&](const LayerCapture& capture, int threads) {
          const FitOptions options = {.bits = {2, 3}, .outliers = {0, 0.05}, .threads = threads};
          formats::LayerCodebook fit =
              fit_layer(capture, session_.config().layers[static_cast<std::size_t>(capture.layer)], options);
          folder.save_layer(frame(), fit);
          return fit;
        },
        [&](int layer) { passes.layer_done(layer); }, kThreads);
    Capturer capturer(session_, {.sinks = kSinks}, left.last_visited(), fits);
    passes.backward(capturer);
    fits.wait();
    passes.end_backward();
    codebook.layers = fits.take_layers();
    std::ranges::sort(codebook.layers, {}, &formats::LayerCodebook::index);
    expect_checkpoints(folder, codebook);
    folder.finish();
    return codebook;
  }
  /// What a run that was stopped now would find of the fits.
  void expect_checkpoints(const WorkFolder& folder, const formats::Codebook& codebook) const {
    const Checkpoints left_behind = find_checkpoints(folder);
    EXPECT_TRUE(left_behind.damaged.empty());
    EXPECT_EQ(left_behind.layers_fitted(), static_cast<int>(codebook.layers.size()));
    for (const formats::LayerCodebook& layer : codebook.layers)
      EXPECT_EQ(left_behind.fits[static_cast<std::size_t>(layer.index)], layer) << layer.index;
  }
  [[nodiscard]] std::vector<PlainSample> plain_samples(bool with_gradients) const {
    std::vector<PlainSample> samples;
    for (std::int64_t i = 0; i < kSamples; ++i)
      samples.emplace_back(*session_.model, session_.windows.sample(i), with_gradients);
    return samples;
  }

  fs::path root_;
  Session session_;
  const ToyModel* toy_ = nullptr;
};

void expect_sets(const formats::TensorCodebook& tensor) {
  const bool stored = tensor.tensor.thresholds == ThresholdScope::channel;
  const auto channels = static_cast<std::size_t>(tensor.tensor.channels());
  EXPECT_EQ(tensor.fisher_channel.size(), channels);
  ASSERT_EQ(tensor.outliers.size(), 2U);
  EXPECT_EQ(tensor.outliers[0].fraction, 0);
  EXPECT_EQ(tensor.outliers[1].fraction, 0.05);
  for (const formats::OutlierSet& set : tensor.outliers) {
    EXPECT_EQ(set.lower.size(), stored ? channels : 0);
    EXPECT_EQ(set.upper.size(), stored ? channels : 0);
    ASSERT_EQ(set.datatypes.size(), 2U);
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(set.datatypes[i].bits, static_cast<int>(i) + 2);
      EXPECT_EQ(set.datatypes[i].centroids.size(), std::size_t{4} << i);
      EXPECT_EQ(set.datatypes[i].weights, "fisher");
    }
  }
}

TEST_F(ToyFamilyTest, ItsNeedIsKnownBeforeItsRun) {
  const TensorMemory memory;
  const RunShape run{.model = *session_.model,
                     .weights = *session_.weights,
                     .samples = kSamples,
                     .seqlen = kLength,
                     .tokens = kSamples * kLength,
                     .outlier_fractions = 2,
                     .activation_bytes = 1 << 12,
                     .threads = kThreads,
                     .work = root_};
  const RemainingWork left = remaining_work(Checkpoints(kLayers), true);
  const ResourceNeed need = estimate_need(run, left);
  EXPECT_GT(need.largest.capture_bytes, 0);
  EXPECT_GT(need.seconds_high, 0);
  check_need(need, run);
}

TEST_F(ToyFamilyTest, ItsCodebookHoldsWhatEachLayerCachesAndIsReadBackEqual) {
  const formats::Codebook codebook = run();
  ASSERT_EQ(codebook.layers.size(), 3U);  // the last layer caches nothing
  for (std::size_t l = 0; l < codebook.layers.size(); ++l) {
    const formats::LayerCodebook& layer = codebook.layers[l];
    EXPECT_EQ(layer.index, static_cast<int>(l));
    std::vector<CachedTensor> tensors;
    for (const formats::TensorCodebook& tensor : layer.tensors) {
      SCOPED_TRACE(testing::Message() << "layer " << l << ", " << tensor.tensor.name);
      tensors.push_back(tensor.tensor);
      expect_sets(tensor);
    }
    EXPECT_EQ(tensors, kCaches[l]) << l;
  }
  formats::write_codebook(root_ / "toy.h5", codebook);
  formats::Codebook back = formats::read_codebook(root_ / "toy.h5");
  EXPECT_EQ(back.content_sha256.size(), 64U);
  back.content_sha256 = codebook.content_sha256;  // the reader sets it
  EXPECT_EQ(back, codebook);
}

TEST_F(ToyFamilyTest, SensitivitiesAreTheSquaredGradientsThroughTheWholeModel) {
  const formats::Codebook codebook = run();
  const std::vector<PlainSample> samples = plain_samples(true);
  double loss = 0;
  for (const PlainSample& sample : samples) loss += sample.loss / double{kSamples};
  EXPECT_NEAR(codebook.calibration.loss, loss, 1e-5 * loss);
  for (const formats::LayerCodebook& layer : codebook.layers) {
    for (std::size_t t = 0; t < layer.tensors.size(); ++t) {
      SCOPED_TRACE(testing::Message() << "layer " << layer.index << ", " << layer.tensors[t].tensor.name);
      const auto squares = [&](std::int64_t first) {
        at::Tensor sum = at::zeros({layer.tensors[t].tensor.channels()}, at::kDouble);
        for (const PlainSample& sample : samples) {
          const at::Tensor gradient = sample.cached[static_cast<std::size_t>(layer.index)].at(t).grad();
          sum += gradient.slice(0, first).to(at::kDouble).square().sum(0);
        }
        return sum;
      };
      const at::Tensor found = as_tensor(layer.tensors[t].fisher_channel);
      EXPECT_TRUE(at::allclose(found, squares(kSinks), 1e-4, 0)) << found << squares(kSinks);
      // The sample tells that the sinks are left out.
      EXPECT_FALSE(at::allclose(found, squares(0), 1e-4, 0));
    }
  }
}

TEST_F(ToyFamilyTest, AGatesThresholdsAreTheBoundsOfWhatItsBlockShows) {
  const formats::Codebook codebook = run();
  const std::vector<PlainSample> samples = plain_samples(false);
  for (const std::size_t l : {0U, 2U}) {
    const formats::TensorCodebook* gate = codebook.layers.at(l).find("gate");
    ASSERT_NE(gate, nullptr) << l;
    const formats::OutlierSet& set = gate->outliers.at(0);
    ASSERT_EQ(set.fraction, 0);
    const auto are_bounds = [&](std::int64_t first) {
      std::vector<at::Tensor> kept;
      for (const PlainSample& sample : samples)
        kept.push_back(sample.cached[l].at(2).slice(0, first).to(at::kDouble));
      const at::Tensor all = at::cat(kept);
      return at::allclose(as_tensor(set.lower), at::amin(all, 0), 0, 1e-5) &&
             at::allclose(as_tensor(set.upper), at::amax(all, 0), 0, 1e-5);
    };
    EXPECT_TRUE(are_bounds(kSinks)) << l;
    // The sample tells that the sinks are left out.
    EXPECT_FALSE(are_bounds(0)) << l;
  }
}

/// What a cache of coarse numbers would give back.
at::Tensor coarse(const at::Tensor& x) {
  return at::round(x * 2) / 2;
}

struct Coarsening final : fisher::CacheHook {
  at::Tensor show(std::size_t tensor, CachePoint point, const at::Tensor& x) override {
    EXPECT_EQ(tensor, 0U);
    EXPECT_EQ(point, CachePoint::cached);
    return coarse(x);
  }
};

/// The block's output, token by token and in double, with other latents than its own.
at::Tensor attend_to(const LatentBlock& block, const at::Tensor& hidden, const at::Tensor& latents) {
  const at::Tensor queries = at::matmul(hidden.to(at::kDouble), block.query.to(at::kDouble));
  const at::Tensor read = latents.to(at::kDouble);
  std::vector<at::Tensor> rows;
  for (std::int64_t token = 0; token < hidden.size(0); ++token) {
    at::Tensor sum = at::zeros({kLatent.channels()}, at::kDouble);
    double total = 0;
    for (std::int64_t other = 0; other <= token; ++other) {
      const double weight = std::exp((queries[token] * read[other]).sum().item<double>());
      sum += weight * read[other];
      total += weight;
    }
    rows.push_back(at::matmul(at::tanh(sum / total), block.output.to(at::kDouble)));
  }
  return hidden + at::stack(rows).to(at::kFloat);
}

TEST_F(ToyFamilyTest, AHookThatReplacesTheLatentChangesTheLogitsAsThatLatentDoes) {
  const at::NoGradGuard no_graph;
  const at::Tensor input = toy_->load_block(0)->forward(toy_->embed(session_.windows.sample(0)), nullptr);
  const auto logits_after = [&](at::Tensor hidden) {
    for (int layer = 2; layer < kLayers; ++layer) hidden = toy_->load_block(layer)->forward(hidden, nullptr);
    return toy_->load_head()->logits(hidden);
  };
  const LatentBlock& block = toy_->latent_block();
  const at::Tensor latents = at::matmul(input, block.latent);
  Coarsening hook;
  const at::Tensor replaced = logits_after(toy_->load_block(1)->forward(input, &hook));
  const at::Tensor own = logits_after(toy_->load_block(1)->forward(input, nullptr));
  EXPECT_TRUE(at::allclose(replaced, logits_after(attend_to(block, input, coarse(latents))), 1e-4, 1e-4));
  EXPECT_TRUE(at::allclose(own, logits_after(attend_to(block, input, latents)), 1e-4, 1e-4));
  EXPECT_FALSE(at::allclose(replaced, own, 1e-2, 1e-2));
}

}  // namespace
}  // namespace kvcal::calib
