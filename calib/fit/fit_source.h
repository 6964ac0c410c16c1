// calib/fit/fit_source.h: a captured tensor as the solver wants it: normalised inliers and their weights, a chunk
// of tokens at a time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "calib/engine/layer_capture.h"
#include "calib/fit/thresholds.h"
#include "kmeans/weighted_kmeans.h"

namespace kvcal::calib {

/// How an element's weight is made of its gradient and its range.
enum class Weighting {
  kRange,  ///< F s^2: an error of e in x' is one of s e in x (docs/method.md)
  kPlain,  ///< F
  kUnit,   ///< 1: where all weights of a fit are zero
};

/// The points x' = (x - zero) / range and weights of all inliers: lower <= x <= upper and range > 0. No copy
/// of the tensor is made; each load() computes a chunk anew, in double: in float the rounding of points would
/// show in the objective's eighth digit, and squares of small gradients would underflow.
class FitSource final : public kmeans::PointSource<double> {
 public:
  /// thresholds: those of find_thresholds() by the same layout. What was captured and the thresholds outlive
  /// this object.
  FitSource(const CapturedTokens& tokens, const Thresholds& thresholds, const PairLayout& layout,
            Weighting weighting, int threads);
  /// The same inliers by other ranges, [pairs], weighted so that sums of squared errors keep their units.
  FitSource(const FitSource& other, std::span<const Normaliser> ranges);

  [[nodiscard]] std::int64_t num_chunks() const override;
  void load(std::int64_t chunk, std::vector<double>& points, std::vector<double>& weights) const override;

  [[nodiscard]] std::int64_t inliers() const { return inliers_; }
  /// Whether every weight is zero (then only kUnit can be fitted).
  [[nodiscard]] bool weightless() const { return !(largest_weight_ > 0); }

 private:
  template <typename Visit>
  void visit(std::int64_t chunk, const Visit& visit) const;

  /// How the numbers of a pair of thresholds become points, and what their weights are multiplied by.
  struct Pair {
    Normaliser normaliser;
    double cost = 1;
  };

  CapturedTokens tokens_;
  std::vector<Pair> pairs_;
  const Thresholds& thresholds_;
  PairLayout layout_;
  Weighting weighting_;
  std::int64_t tokens_per_chunk_;
  std::int64_t inliers_ = 0;
  double largest_weight_ = 0;
};

/// The points of another source, computed once where they take no more than kMost bytes; else as often as they are asked for.
class KeptPoints final : public kmeans::PointSource<double> {
 public:
  static constexpr std::int64_t kMost = std::int64_t{128} << 20;

  /// source: outlives this object.
  KeptPoints(const FitSource& source, int threads);

  [[nodiscard]] std::int64_t num_chunks() const override { return source_.num_chunks(); }
  void load(std::int64_t chunk, std::vector<double>& points, std::vector<double>& weights) const override;

 private:
  struct Chunk {
    std::vector<double> points, weights;
  };
  const FitSource& source_;
  std::vector<Chunk> chunks_;  // empty: none is kept
};

/// The points of another source in other units: (point - zero) / range.
class MovedPoints final : public kmeans::PointSource<double> {
 public:
  /// source: outlives this object; range > 0.
  MovedPoints(const kmeans::PointSource<double>& source, double zero, double range)
      : source_(source), zero_(zero), range_(range) {}

  [[nodiscard]] std::int64_t num_chunks() const override { return source_.num_chunks(); }
  void load(std::int64_t chunk, std::vector<double>& points, std::vector<double>& weights) const override {
    source_.load(chunk, points, weights);
    for (double& point : points) point = (point - zero_) / range_;
    for (double& weight : weights) weight *= range_ * range_;
  }

 private:
  const kmeans::PointSource<double>& source_;
  double zero_, range_;
};

}  // namespace kvcal::calib
