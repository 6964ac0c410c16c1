#include "calib/merge/weight_spread.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace kvcal::calib {

WeightSpread::WeightSpread(std::span<const float> shares) {
  const double width = 2.0 / static_cast<double>(shares.size());
  for (std::size_t i = 0; i < shares.size(); ++i) {
    const double begin = -1 + width * static_cast<double>(i);
    parts_.push_back({begin, begin + width, double{shares[i]}});
  }
}

WeightSpread::WeightSpread(std::span<const float> shares, std::span<const double> levels)
    : WeightSpread(shares) {
  const Part low = tail(parts_.front(), parts_[1], levels, 0);
  const Part high = tail(parts_.back(), parts_[parts_.size() - 2], levels, levels.size() - 1);
  parts_.insert(parts_.begin(), low);
  parts_.push_back(high);
}

WeightSpread::Part WeightSpread::tail(Part& end, const Part& neighbour, std::span<const double> levels,
                                      std::size_t level) const {
  const double beyond = std::max(0.0, end.share - neighbour.share);
  const double edge = level == 0 ? end.begin : end.end;
  end.share -= beyond;
  if (beyond == 0) return {edge, edge, 0};
  const Nearest within = by_level(levels)[level];
  const double place = (levels[level] * (within.share + beyond) - within.moment) / beyond;
  const double outwards = level == 0 ? std::min(place, edge) : std::max(place, edge);
  return {outwards, outwards, beyond};
}

std::vector<WeightSpread::Nearest> WeightSpread::by_level(std::span<const double> levels) const {
  std::vector<Nearest> nearest(levels.size());
  std::size_t k = 0;
  for (const Part& part : parts_) {
    double begin = part.begin;
    for (;;) {
      while (k + 1 < levels.size() && begin >= (levels[k] + levels[k + 1]) / 2) ++k;
      const bool last = k + 1 == levels.size();
      const double end = last ? part.end : std::min(part.end, (levels[k] + levels[k + 1]) / 2);
      const double share =
          part.end > part.begin ? part.share * (end - begin) / (part.end - part.begin) : part.share;
      const double from = begin - levels[k], to = end - levels[k];
      nearest[k].share += share;
      nearest[k].moment += share * (begin + end) / 2;
      nearest[k].error += share * (from * from + from * to + to * to) / 3;
      if (end >= part.end) break;
      begin = end;
    }
  }
  return nearest;
}

double WeightSpread::squared_error(std::span<const double> levels) const {
  const std::vector<Nearest> nearest = by_level(levels);
  return std::accumulate(nearest.begin(), nearest.end(), 0.0,
                         [](double sum, const Nearest& one) { return sum + one.error; });
}

}  // namespace kvcal::calib
