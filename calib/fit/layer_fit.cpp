#include "calib/fit/layer_fit.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/error.h"
#include "base/parallel.h"
#include "calib/fit/fit_source.h"
#include "calib/fit/magnitudes.h"
#include "calib/fit/qnorm.h"
#include "calib/fit/sample_halves.h"
#include "calib/fit/thresholds.h"
#include "calib/fit/weight_histogram.h"
#include "cuda/kernels/float16.h"

namespace kvcal::calib {
namespace {

// Channels whose sums are taken together.
constexpr std::int64_t kChannelsAtOnce = 64;
// Tokens of them that are read together.
constexpr std::int64_t kTokensAtOnce = 64;

struct TensorName {
  int layer;
  std::string kind;  // "key", say
  [[nodiscard]] std::string text() const { return base::concat("layer ", layer, ", ", kind, "s"); }
};

std::vector<float> fisher_channel(const CapturedTokens& tokens, int threads) {
  const std::int64_t channels = tokens.channels();
  std::vector<float> sums(static_cast<std::size_t>(channels), static_cast<float>(tokens.tokens()));
  if (!tokens.has_gradients()) return sums;
  base::parallel_for((channels + kChannelsAtOnce - 1) / kChannelsAtOnce, threads, [&](std::int64_t block) {
    const Range some{block * kChannelsAtOnce, std::min(channels, (block + 1) * kChannelsAtOnce)};
    const auto width = static_cast<std::size_t>(some.size());
    std::vector<float> gradients(width * kTokensAtOnce);
    std::vector<double> totals(width);
    for (std::int64_t begin = 0; begin < tokens.tokens(); begin += kTokensAtOnce) {
      const Range few{begin, std::min(tokens.tokens(), begin + kTokensAtOnce)};
      tokens.read_gradients(few, some, gradients);
      for (std::size_t i = 0; i < static_cast<std::size_t>(few.size()) * width; ++i)
        totals[i % width] += static_cast<double>(gradients[i]) * static_cast<double>(gradients[i]);
    }
    for (std::size_t c = 0; c < width; ++c)
      sums[static_cast<std::size_t>(some.begin) + c] = static_cast<float>(totals[c]);
  });
  return sums;
}

// Where a pair of thresholds stands: a channel; or the token, and its largest channel.
std::string place_of(const CapturedTokens& tokens, const PairLayout& layout, std::int64_t pair) {
  if (layout.by_channel()) return base::concat("channel ", pair);
  const Range token = layout.tokens_of(pair, tokens.tokens());
  std::vector<float> x(static_cast<std::size_t>(tokens.channels()));
  tokens.read_x(token, {0, tokens.channels()}, x);
  const auto largest =
      std::ranges::max_element(x, [](float a, float b) { return std::abs(a) < std::abs(b); });
  return base::concat("channel ", largest - x.begin(), " of captured token ", token.begin);
}

void check_half_range(const CapturedTokens& tokens, const Thresholds& thresholds, const TensorName& name,
                      const PairLayout& layout) {
  for (std::size_t i = 0; i < thresholds.lower.size(); ++i) {
    const Normaliser normal = normaliser(thresholds.lower[i], thresholds.upper[i]);
    const auto overflows = [](double value) {
      return (codec::float_to_half(static_cast<float>(value)) & 0x7fffU) == 0x7c00U;
    };
    if (!overflows(normal.zero) && !overflows(normal.range)) continue;
    throw base::InvalidInput(base::concat(
        name.text(), ", ", place_of(tokens, layout, static_cast<std::int64_t>(i)), ": thresholds ",
        thresholds.lower[i], " and ", thresholds.upper[i],
        " give a scale or zero beyond fp16 (65504), in which they are stored; is the checkpoint damaged?"));
  }
}

std::vector<float> round_centroids(const std::vector<double>& centroids) {
  return {centroids.begin(), centroids.end()};
}

std::vector<int> cluster_counts(const std::vector<int>& bits) {
  std::vector<int> counts;
  for (const int b : bits) counts.push_back(1 << b);
  return counts;
}

// All bits of one outlier fraction, and where the weight that they were fitted to lies.
formats::OutlierSet fit_datatypes(const CapturedTokens& tokens, const Thresholds& thresholds,
                                  const PairLayout& layout, double fraction, const TensorName& name,
                                  const FitOptions& options) {
  const auto weighting = options.range_weights ? Weighting::kRange : Weighting::kPlain;
  auto source = std::make_unique<FitSource>(tokens, thresholds, layout, weighting, options.threads);
  if (source->inliers() == 0) {
    throw base::InvalidInput(
        base::concat(name.text(), ", outlier fraction ", fraction,
                     ": nothing to fit; every channel is constant. Is the checkpoint a trained model?"));
  }
  std::string weights_name = tokens.has_gradients() ? "fisher" : "none";
  if (source->weightless()) {
    weights_name = "uniform";
    source = std::make_unique<FitSource>(tokens, thresholds, layout, Weighting::kUnit, options.threads);
  }
  const std::vector<int> counts = cluster_counts(options.bits);
  const std::vector<kmeans::Solution> solutions = kmeans::solve_all(*source, counts, 0.0, options.threads);

  formats::OutlierSet set;
  set.fraction = fraction;
  set.histogram = weight_histogram(*source, options.threads);
  std::vector<formats::Datatype>& datatypes = set.datatypes;
  std::vector<std::vector<float>> centroids;
  for (std::size_t i = 0; i < solutions.size(); ++i) {
    formats::Datatype datatype;
    datatype.bits = options.bits[i];
    datatype.centroids = round_centroids(solutions[i].centroids);
    datatype.objective = solutions[i].objective;
    datatype.lower_bound = solutions[i].lower_bound;
    datatype.weights = weights_name;
    centroids.push_back(datatype.centroids);
    datatypes.push_back(std::move(datatype));
  }
  const std::vector<QNorm> norms = qnorm(*source, centroids, options.threads);
  for (std::size_t i = 0; i < norms.size(); ++i) {
    datatypes[i].qnorm_scale = norms[i].scale;
    datatypes[i].qnorm_offset = norms[i].offset;
  }
  return set;
}

// Each fraction's thresholds, and the datatypes of what lies within.
std::vector<formats::OutlierSet> fit_sets(const CapturedTokens& tokens,
                                          const std::vector<Thresholds>& thresholds, const PairLayout& layout,
                                          const TensorName& name, const FitOptions& options) {
  std::vector<formats::OutlierSet> sets;
  for (std::size_t f = 0; f < options.outliers.size(); ++f) {
    check_half_range(tokens, thresholds[f], name, layout);
    formats::OutlierSet set =
        fit_datatypes(tokens, thresholds[f], layout, options.outliers[f], name, options);
    if (layout.by_channel()) {
      set.lower = thresholds[f].lower;
      set.upper = thresholds[f].upper;
    }
    sets.push_back(std::move(set));
  }
  return sets;
}

// As the tensor's own, with the sinks among the others.
std::vector<formats::OutlierSet> fit_with_sinks(const CapturedTensor& tensor, const PairLayout& layout,
                                                const TensorName& name, const FitOptions& options) {
  const CapturedTokens tokens(tensor, tensor.with_sinks());
  return fit_sets(tokens, find_thresholds(tokens, layout, options.outliers, options.threads), layout, name,
                  options);
}

std::vector<formats::OutlierSet> rotated_thresholds(const CapturedTensor& rotated, const PairLayout& layout,
                                                    const TensorName& name, const FitOptions& options) {
  const CapturedTokens tokens(rotated, rotated.with_sinks());
  std::vector<formats::OutlierSet> sets;
  for (const Thresholds& found : find_thresholds(tokens, layout, options.outliers, options.threads)) {
    check_half_range(tokens, found, name, layout);
    formats::OutlierSet set;
    set.fraction = options.outliers[sets.size()];
    set.lower = found.lower;
    set.upper = found.upper;
    sets.push_back(std::move(set));
  }
  return sets;
}

// rotated: the same after RoPE, null where it was not captured.
formats::TensorCodebook fit_tensor(const CapturedTensor& tensor, const CapturedTensor* rotated, int layer,
                                   const FitOptions& options) {
  const CapturedTokens tokens(tensor);
  const TensorName name{layer, tensor.tensor.name};
  const PairLayout layout{tensor.tensor.thresholds, tensor.tensor.channels(),
                          options.token_per_head ? tensor.tensor.heads : 1};
  formats::TensorCodebook codebook;
  codebook.tensor = tensor.tensor;
  codebook.fisher_channel = fisher_channel(tokens, options.threads);
  const std::vector<Thresholds> thresholds =
      find_thresholds(tokens, layout, options.outliers, options.threads);
  codebook.outliers = fit_sets(tokens, thresholds, layout, name, options);
  if (options.ablation) codebook.with_sinks = fit_with_sinks(tensor, layout, name, options);
  if (rotated != nullptr) codebook.rotated = rotated_thresholds(*rotated, layout, name, options);
  codebook.magnitudes = find_magnitudes(tensor, rotated, options.threads);
  const auto widest = std::max_element(options.outliers.begin(), options.outliers.end());
  codebook.halves = compare_halves(
      tensor, thresholds[static_cast<std::size_t>(widest - options.outliers.begin())], layout, options);
  return codebook;
}

}  // namespace

formats::LayerCodebook fit_layer(const LayerCapture& capture, const LayerConfig& layer,
                                 const FitOptions& options) {
  formats::LayerCodebook fit;
  fit.index = capture.layer;
  fit.rope_json = layer.rope_json;
  fit.window = layer.window;
  for (const CapturedTensor& tensor : capture.tensors) {
    const auto rotated = std::ranges::find_if(
        capture.rotated, [&](const CapturedTensor& other) { return other.tensor == tensor.tensor; });
    fit.tensors.push_back(
        fit_tensor(tensor, rotated == capture.rotated.end() ? nullptr : &*rotated, capture.layer, options));
  }
  return fit;
}

}  // namespace kvcal::calib
