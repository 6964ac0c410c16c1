#include "calib/fit/layer_fit.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "calib/fit/fit_source.h"
#include "calib/fit/magnitudes.h"
#include "calib/fit/qnorm.h"
#include "calib/fit/range_fit.h"
#include "calib/fit/sample_halves.h"
#include "calib/fit/thresholds.h"
#include "calib/fit/weight_histogram.h"
#include "cuda/hadamard.h"
#include "cuda/kernels/codec_math.h"
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
    if (is_storable(normal)) continue;
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

// As they are stored: a range that fp16 rounds to 0 would lose its channel.
bool fit_in_half(const formats::Datatype& datatype) {
  for (std::size_t c = 0; c < datatype.scale.size(); ++c) {
    // A constant channel has none to lose.
    const bool lost = codec::float_to_half(datatype.scale[c]) == 0 && datatype.scale[c] > 0;
    if (lost || !is_storable({double{datatype.zero[c]}, double{datatype.scale[c]}})) return false;
  }
  return true;
}

/// The datatypes of a tensor's inliers, and their ranges where those are fitted.
class DatatypeFit {
 public:
  DatatypeFit(const FitSource& source, std::string weights, int threads)
      : source_(source), weights_(std::move(weights)), threads_(threads) {}

  /// At their optimum in the ranges of the thresholds.
  [[nodiscard]] std::vector<formats::Datatype> in_thresholds(const std::vector<int>& bits) const {
    const std::vector<kmeans::Solution> solutions =
        kmeans::solve_all(source_, cluster_counts(bits), 0.0, threads_);
    std::vector<formats::Datatype> datatypes;
    std::vector<std::vector<float>> centroids;
    for (std::size_t i = 0; i < solutions.size(); ++i) {
      datatypes.push_back(make(bits[i], solutions[i]));
      datatypes.back().centroids = round_centroids(solutions[i].centroids);
      centroids.push_back(datatypes.back().centroids);
    }
    const std::vector<QNorm> norms = qnorm(source_, centroids, threads_);
    for (std::size_t i = 0; i < norms.size(); ++i) set_qnorm(datatypes[i], norms[i]);
    return datatypes;
  }

  /// At their optimum in ranges that are fitted; in those of the thresholds where these do no better.
  [[nodiscard]] std::vector<formats::Datatype> in_fitted(const RangeFit& ranges,
                                                         const std::vector<int>& bits) const {
    std::vector<formats::Datatype> datatypes;
    for (const int b : bits) {
      const RangeFit::Start start = ranges.start(1 << b, threads_);
      std::optional<formats::Datatype> fitted = fit_ranges(ranges, b, start.levels);
      // Where fitting gains little, only the thresholds' own optimum says whether it gains at all.
      if (!fitted || !(fitted->objective < (1 - kCertainGain) * start.error)) {
        formats::Datatype exact = in_thresholds({b}).front();
        if (!fitted || !(fitted->objective < exact.objective)) fitted = std::move(exact);
      }
      datatypes.push_back(std::move(*fitted));
    }
    return datatypes;
  }

 private:
  // What a start may lie above the optimum that it stands for, and more.
  static constexpr double kCertainGain = 0.01;

  // Nothing where they can't be stored.
  [[nodiscard]] std::optional<formats::Datatype> fit_ranges(const RangeFit& ranges, int bits,
                                                            const std::vector<double>& levels) const {
    std::vector<Normaliser> fitted = ranges.fit(levels, threads_);
    const std::vector<int> counts = {1 << bits};
    const FitSource source(source_, fitted);
    const KeptPoints points(source, threads_);
    const kmeans::Solution solution = kmeans::solve_all(points, counts, 0.0, threads_)[0];
    formats::Datatype datatype = make(bits, solution);
    // Of all units that give the same numbers those in which the levels reach from -1 to 1.
    const double low = solution.centroids.front(), high = solution.centroids.back();
    const double middle = (high + low) / 2, half = (high - low) / 2;
    if (!(half > 0)) return std::nullopt;
    for (const double centroid : solution.centroids)
      datatype.centroids.push_back(static_cast<float>((centroid - middle) / half));
    for (Normaliser& range : fitted) {
      range.zero += range.range * middle;
      range.range *= half;
      datatype.scale.push_back(static_cast<float>(range.range));
      datatype.zero.push_back(static_cast<float>(range.zero));
    }
    if (!fit_in_half(datatype)) return std::nullopt;
    const MovedPoints moved(points, middle, half);
    datatype.histogram = weight_histogram(moved, threads_);
    set_qnorm(datatype, qnorm(moved, {datatype.centroids}, threads_)[0]);
    return datatype;
  }

  [[nodiscard]] formats::Datatype make(int bits, const kmeans::Solution& solution) const {
    formats::Datatype datatype;
    datatype.bits = bits;
    datatype.objective = solution.objective;
    datatype.lower_bound = solution.lower_bound;
    datatype.weights = weights_;
    return datatype;
  }
  static void set_qnorm(formats::Datatype& datatype, const QNorm& norm) {
    datatype.qnorm_scale = norm.scale;
    datatype.qnorm_offset = norm.offset;
  }

  const FitSource& source_;
  std::string weights_;
  int threads_;
};

// All bits of one outlier fraction, and where the weight that they were fitted to lies.
formats::OutlierSet fit_datatypes(const CapturedTokens& tokens, const Thresholds& thresholds,
                                  const PairLayout& layout, double fraction, const TensorName& name,
                                  const FitOptions& options) {
  auto weighting = options.range_weights ? Weighting::kRange : Weighting::kPlain;
  auto source = std::make_unique<FitSource>(tokens, thresholds, layout, weighting, options.threads);
  if (source->inliers() == 0) {
    throw base::InvalidInput(
        base::concat(name.text(), ", outlier fraction ", fraction,
                     ": nothing to fit; every channel is constant. Is the checkpoint a trained model?"));
  }
  std::string weights_name = tokens.has_gradients() ? "fisher" : "none";
  if (source->weightless()) {
    weights_name = "uniform";
    weighting = Weighting::kUnit;
    source = std::make_unique<FitSource>(tokens, thresholds, layout, weighting, options.threads);
  }
  formats::OutlierSet set;
  set.fraction = fraction;
  set.histogram = weight_histogram(*source, options.threads);
  const DatatypeFit fit(*source, weights_name, options.threads);
  const bool fits_ranges = options.fitted_ranges && layout.by_channel();
  set.datatypes = fits_ranges
                      ? fit.in_fitted(RangeFit(tokens, thresholds, weighting, options.threads), options.bits)
                      : fit.in_thresholds(options.bits);
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

void turn_heads(CapturedTensor& tensor, int block, int threads) {
  const auto turn = [&](std::span<float> numbers) {
    codec::turn_hadamard(numbers, static_cast<std::size_t>(block));
  };
  tensor.x.change_tokens(threads, turn);
  if (!tensor.gradients.empty()) tensor.gradients.change_tokens(threads, turn);
}

// rotated: the same after RoPE, null where it was not captured.
formats::TensorCodebook fit_tensor(CapturedTensor& tensor, const CapturedTensor* rotated, int layer,
                                   const FitOptions& options) {
  const CapturedTokens tokens(tensor);
  const TensorName name{layer, tensor.tensor.name};
  const PairLayout layout{tensor.tensor.thresholds, tensor.tensor.channels(),
                          options.token_per_head ? tensor.tensor.heads : 1};
  formats::TensorCodebook codebook;
  codebook.tensor = tensor.tensor;
  codebook.fisher_channel = fisher_channel(tokens, options.threads);
  codebook.magnitudes = find_magnitudes(tensor, rotated, options.threads);
  if (options.turned_values && !layout.by_channel()) {
    codebook.rotation_block =
        static_cast<int>(codec::hadamard_block(static_cast<std::size_t>(tensor.tensor.dim)));
    turn_heads(tensor, codebook.rotation_block, options.threads);
  }
  const std::vector<Thresholds> thresholds =
      find_thresholds(tokens, layout, options.outliers, options.threads);
  codebook.outliers = fit_sets(tokens, thresholds, layout, name, options);
  if (options.ablation) codebook.with_sinks = fit_with_sinks(tensor, layout, name, options);
  if (rotated != nullptr) codebook.rotated = rotated_thresholds(*rotated, layout, name, options);
  const auto widest = std::max_element(options.outliers.begin(), options.outliers.end());
  codebook.halves = compare_halves(
      tensor, thresholds[static_cast<std::size_t>(widest - options.outliers.begin())], layout, options);
  return codebook;
}

}  // namespace

formats::LayerCodebook fit_layer(LayerCapture capture, const LayerConfig& layer, const FitOptions& options) {
  formats::LayerCodebook fit;
  fit.index = capture.layer;
  fit.rope_json = layer.rope_json;
  fit.window = layer.window;
  for (CapturedTensor& tensor : capture.tensors) {
    const auto rotated = std::ranges::find_if(
        capture.rotated, [&](const CapturedTensor& other) { return other.tensor == tensor.tensor; });
    fit.tensors.push_back(
        fit_tensor(tensor, rotated == capture.rotated.end() ? nullptr : &*rotated, capture.layer, options));
  }
  return fit;
}

}  // namespace kvcal::calib
