#include "calib/fit/sample_halves.h"

#include <algorithm>
#include <cmath>

#include "calib/fit/fit_source.h"
#include "calib/fit/qnorm.h"

namespace kvcal::calib {
namespace {

// The mean over channels of how far both thresholds of the halves lie apart, in units of the whole sample's
// range.
double threshold_shift(const Thresholds& whole, const Thresholds& first, const Thresholds& second) {
  double sum = 0;
  double counted = 0;
  for (std::size_t c = 0; c < whole.lower.size(); ++c) {
    const double range = normaliser(whole.lower[c], whole.upper[c]).range;
    if (range == 0) continue;
    sum += (std::abs(static_cast<double>(first.lower[c]) - second.lower[c]) +
            std::abs(static_cast<double>(first.upper[c]) - second.upper[c])) /
           (2 * range);
    ++counted;
  }
  return counted > 0 ? sum / counted : 0;
}

// What it costs each half to use the other's datatype, relative to its own optimum; the mean of both ways.
double datatype_excess(const FitSource& first, const FitSource& second, int clusters, int threads) {
  if (first.inliers() == 0 || second.inliers() == 0 || first.weightless() || second.weightless()) return 0;
  const std::vector<int> counts = {clusters};
  const FitSource* const halves[2] = {&first, &second};
  std::vector<float> centroids[2];
  double own[2];
  for (int h = 0; h < 2; ++h) {
    const auto solution = kmeans::solve_all(*halves[h], counts, 1e-3, threads)[0];
    centroids[h].assign(solution.centroids.begin(), solution.centroids.end());
    own[h] = solution.objective;
  }
  double excess = 0;
  for (int h = 0; h < 2; ++h) {
    if (own[h] > 0) excess += objective_of(*halves[h], centroids[1 - h], threads) / own[h] - 1;
  }
  return excess / 2;
}

}  // namespace

formats::SampleAgreement compare_halves(const CapturedTensor& tensor, const Thresholds& whole,
                                        const PairLayout& layout, const FitOptions& options) {
  formats::SampleAgreement agreement;
  const std::int64_t tokens = tensor.tokens().size();
  if (tokens < 2) return agreement;
  const CapturedTokens parts[2] = {{tensor, {0, tokens / 2}}, {tensor, {tokens / 2, tokens}}};
  const std::vector<double> fraction = {*std::max_element(options.outliers.begin(), options.outliers.end())};
  const auto thresholds_of = [&](const CapturedTokens& part) {
    return find_thresholds(part, layout, fraction, options.threads)[0];
  };
  const Thresholds halves[2] = {thresholds_of(parts[0]), thresholds_of(parts[1])};
  if (layout.by_channel()) agreement.threshold_shift = threshold_shift(whole, halves[0], halves[1]);
  const auto weighting = options.range_weights ? Weighting::kRange : Weighting::kPlain;
  const FitSource first(parts[0], halves[0], layout, weighting, options.threads);
  const FitSource second(parts[1], halves[1], layout, weighting, options.threads);
  const int bits = options.bits[options.bits.size() / 2];
  agreement.datatype_excess = datatype_excess(first, second, 1 << bits, options.threads);
  return agreement;
}

}  // namespace kvcal::calib
