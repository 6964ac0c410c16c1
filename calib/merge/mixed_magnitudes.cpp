#include "calib/merge/mixed_magnitudes.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "calib/merge/mixed_quantile.h"

namespace kvcal::calib {
namespace {

using formats::MagnitudeGroup;
using formats::Magnitudes;

constexpr std::size_t kLevels = formats::kMagnitudeLevels.size();
constexpr std::size_t kTypes = formats::kScaledTypes;

// The share of the numbers at or below a magnitude, where as many are negative.
double two_sided(double level) {
  return (1 + level) / 2;
}

class Mixer {
 public:
  Mixer(std::span<const RunMagnitudes> runs, int heads)
      : runs_(runs), channels_(runs.front().sensitivity.size()), heads_(static_cast<std::size_t>(heads)) {}

  // magnitudes_of(run): those of one kind.
  template <typename MagnitudesOf>
  [[nodiscard]] Magnitudes mix(const MagnitudesOf& magnitudes_of) const {
    const auto group = [&](MagnitudeGroup Magnitudes::*member, std::size_t rows) {
      std::vector<const MagnitudeGroup*> groups;
      for (const RunMagnitudes& run : runs_) groups.push_back(&(magnitudes_of(run.magnitudes).*member));
      const std::vector<KnownShares> known = known_shares(channels_ / rows);
      MagnitudeGroup mixed;
      for (std::size_t row = 0; row < rows; ++row) {
        mix_quantiles(groups, row, known, mixed);
        mix_best(groups, row, channels_ / rows, mixed);
      }
      return mixed;
    };
    return {group(&Magnitudes::channel, channels_), group(&Magnitudes::head, heads_),
            group(&Magnitudes::tensor, 1)};
  }

 private:
  // Of each run, of rows of so many channels.
  [[nodiscard]] std::vector<KnownShares> known_shares(std::size_t width) const {
    std::vector<double> shares = {two_sided(0)};
    for (const double level : formats::kMagnitudeLevels) shares.push_back(two_sided(level));
    std::vector<KnownShares> known;
    for (const RunMagnitudes& run : runs_)
      known.emplace_back(static_cast<double>(run.tokens) * static_cast<double>(width), shares);
    return known;
  }

  static void mix_quantiles(const std::vector<const MagnitudeGroup*>& groups, std::size_t row,
                            const std::vector<KnownShares>& known, MagnitudeGroup& mixed) {
    std::vector<QuantileSketch> sketches;
    for (std::size_t r = 0; r < groups.size(); ++r) {
      std::vector<double> values = {0};
      for (const float quantile : std::span(groups[r]->quantiles).subspan(row * kLevels, kLevels))
        values.push_back(double{quantile});
      sketches.emplace_back(known[r], std::move(values));
    }
    for (const double level : formats::kMagnitudeLevels)
      mixed.quantiles.push_back(static_cast<float>(mixed_quantile(sketches, two_sided(level))));
  }

  // width: channels of a row
  void mix_best(const std::vector<const MagnitudeGroup*>& groups, std::size_t row, std::size_t width,
                MagnitudeGroup& mixed) const {
    for (std::size_t type = 0; type < kTypes; ++type) {
      double moment = 0, all = 0, plain = 0;
      for (std::size_t r = 0; r < groups.size(); ++r) {
        const auto own = runs_[r].sensitivity.subspan(row * width, width);
        const double weight = std::accumulate(own.begin(), own.end(), 0.0);
        const double best{groups[r]->best[row * kTypes + type]};
        moment += weight * best;
        all += weight;
        plain += best / static_cast<double>(groups.size());
      }
      mixed.best.push_back(static_cast<float>(all > 0 ? moment / all : plain));
    }
  }

  std::span<const RunMagnitudes> runs_;
  std::size_t channels_, heads_;
};

}  // namespace

formats::TensorMagnitudes mix_magnitudes(std::span<const RunMagnitudes> runs, int heads) {
  const Mixer mixer(runs, heads);
  using formats::TensorMagnitudes;
  const auto optional =
      [&](std::optional<Magnitudes> TensorMagnitudes::*member) -> std::optional<Magnitudes> {
    if (!(runs.front().magnitudes.*member)) return std::nullopt;
    return mixer.mix([&](const TensorMagnitudes& all) -> const Magnitudes& { return *(all.*member); });
  };
  return {mixer.mix([](const TensorMagnitudes& all) -> const Magnitudes& { return all.cached; }),
          optional(&TensorMagnitudes::rotated), optional(&TensorMagnitudes::envelope)};
}

}  // namespace kvcal::calib
