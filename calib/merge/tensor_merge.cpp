#include "calib/merge/tensor_merge.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "calib/fit/thresholds.h"
#include "calib/merge/mixed_levels.h"
#include "calib/merge/mixed_magnitudes.h"
#include "calib/merge/mixed_quantile.h"
#include "cuda/kernels/float16.h"

namespace kvcal::calib {
namespace {

using base::concat;
using formats::Datatype;
using formats::OutlierSet;
using formats::TensorCodebook;

constexpr const char* kUniform = "uniform";

using Histograms = std::vector<const std::vector<float>*>;

/// By the weight that lies in each.
std::vector<float> mean_shares(const Histograms& histograms, const std::vector<double>& weights) {
  const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<float> mean(histograms.front()->size());
  for (std::size_t bin = 0; bin < mean.size(); ++bin) {
    double share = 0;
    for (std::size_t r = 0; r < histograms.size(); ++r) {
      const double part = all > 0 ? weights[r] / all : 1 / static_cast<double>(histograms.size());
      share += part * double{(*histograms[r])[bin]};
    }
    mean[bin] = static_cast<float>(share);
  }
  return mean;
}

std::string datatypes_of(const std::vector<OutlierSet>& sets) {
  std::string text;
  for (const OutlierSet& set : sets) {
    for (const Datatype& datatype : set.datatypes)
      text += concat(text.empty() ? "" : ", ",
                     formats::DatatypeChoice{datatype.bits, set.fraction, false}.name());
  }
  return text;
}

// What a tensor's codebook is made of, in words.
std::string contents_of(const TensorCodebook& codebook) {
  const formats::CachedTensor& tensor = codebook.tensor;
  std::string text = concat(tensor.heads, " heads of ", tensor.dim, ", thresholds by ",
                            formats::threshold_scope_name(tensor.thresholds));
  text += ", " + datatypes_of(codebook.outliers);
  if (codebook.rotation_block > 0) text += concat(", turned in blocks of ", codebook.rotation_block);
  if (!codebook.with_sinks.empty()) text += concat(", with sinks ", datatypes_of(codebook.with_sinks));
  if (!codebook.rotated.empty()) text += ", thresholds after RoPE";
  if (codebook.magnitudes) text += ", magnitudes";
  if (codebook.magnitudes && codebook.magnitudes->rotated) text += ", those after RoPE";
  if (codebook.magnitudes && codebook.magnitudes->envelope) text += ", those at any position";
  return text;
}

// Of the larger fraction within those of the smaller.
bool are_nested(const OutlierSet& larger, const OutlierSet& smaller) {
  return std::ranges::equal(larger.lower, smaller.lower, std::greater_equal()) &&
         std::ranges::equal(larger.upper, smaller.upper, std::less_equal());
}

bool has_histograms(const std::vector<OutlierSet>& sets) {
  return std::ranges::all_of(sets, [](const OutlierSet& set) {
    return !set.histogram.empty() && std::ranges::all_of(set.datatypes, [](const Datatype& datatype) {
      return !datatype.has_ranges() || !datatype.histogram.empty();
    });
  });
}

/// The merging of one tensor.
class Merger {
 public:
  Merger(std::span<const TensorCodebook* const> runs, std::span<const RunSample> samples,
         const MergeRules& rules)
      : runs_(runs.begin(), runs.end()), samples_(samples.begin(), samples.end()), rules_(rules) {
    for (std::size_t r = 0; r < runs_.size(); ++r) {
      fisher_.emplace_back();
      for (const float sum_of_channel : runs_[r]->fisher_channel)
        fisher_.back().push_back(double{sum_of_channel} * samples_[r].fisher_factor);
    }
  }

  MergedTensor merge() {
    const TensorCodebook& first = *runs_.front();
    merged_.codebook.tensor = first.tensor;
    merged_.codebook.rotation_block = first.rotation_block;
    merged_.codebook.fisher_channel = fisher_channel();
    merged_.codebook.halves = halves();
    const auto counted = [](const RunSample& sample) { return sample.counted; };
    const auto all = [](const RunSample& sample) { return sample.tokens; };
    merged_.codebook.outliers = merge_sets(&TensorCodebook::outliers, counted, &merged_.nearness.errors);
    merged_.codebook.with_sinks = merge_sets(&TensorCodebook::with_sinks, all, nullptr);
    merged_.codebook.rotated = merge_sets(&TensorCodebook::rotated, all, nullptr);
    if (first.magnitudes) merged_.codebook.magnitudes = magnitudes();
    find_spread();
    return std::move(merged_);
  }

 private:
  using Sets = std::vector<OutlierSet> TensorCodebook::*;
  using Count = std::int64_t (*)(const RunSample&);

  [[nodiscard]] std::size_t channels() const { return fisher_.front().size(); }
  [[nodiscard]] bool by_channel() const {
    return runs_.front()->tensor.thresholds == formats::ThresholdScope::channel;
  }

  [[nodiscard]] std::vector<float> fisher_channel() const {
    std::vector<float> sums;
    for (std::size_t c = 0; c < channels(); ++c) {
      double total = 0;
      for (const std::vector<double>& run : fisher_) total += run[c];
      sums.push_back(static_cast<float>(total));
    }
    return sums;
  }

  // Of independent parts, each as large as its share: differences of thresholds fall as one over the root of a sample's size, excess costs
  // as one over it.
  [[nodiscard]] formats::SampleAgreement halves() const {
    double all = 0;
    for (const RunSample& sample : samples_) all += static_cast<double>(sample.counted);
    formats::SampleAgreement agreement;
    for (std::size_t r = 0; r < runs_.size(); ++r) {
      const double share = static_cast<double>(samples_[r].counted) / all;
      agreement.threshold_shift += std::pow(share * runs_[r]->halves.threshold_shift, 2);
      agreement.datatype_excess += share * share * runs_[r]->halves.datatype_excess;
    }
    agreement.threshold_shift = std::sqrt(agreement.threshold_shift);
    return agreement;
  }

  std::vector<OutlierSet> merge_sets(Sets member, Count count, std::vector<MergedError>* errors) const {
    std::vector<OutlierSet> merged;
    for (const OutlierSet& set : runs_.front()->*member) merged.emplace_back().fraction = set.fraction;
    if (by_channel() && !merged.empty()) mix_thresholds(member, count, merged);
    for (std::size_t i = 0; i < merged.size(); ++i) {
      std::vector<const OutlierSet*> sets;
      for (const TensorCodebook* run : runs_) sets.push_back(&(run->*member)[i]);
      for (std::size_t d = 0; d < sets.front()->datatypes.size(); ++d)
        merged[i].datatypes.push_back(mix_datatypes(sets, d, merged[i], errors));
      if (!merged[i].datatypes.empty()) mix_histogram(merged[i], sets);
    }
    return merged;
  }

  // Of all fractions: each is a quantile that the others' are found between.
  void mix_thresholds(Sets member, Count count, std::vector<OutlierSet>& merged) const {
    std::vector<double> shares;
    for (const OutlierSet& set : merged) shares.push_back(set.fraction / 2);
    for (auto set = merged.rbegin(); set != merged.rend(); ++set) shares.push_back(1 - set->fraction / 2);
    std::vector<KnownShares> known;
    for (const RunSample& sample : samples_) known.emplace_back(static_cast<double>(count(sample)), shares);
    for (std::size_t c = 0; c < channels(); ++c) {
      std::vector<QuantileSketch> sketches;
      for (std::size_t r = 0; r < runs_.size(); ++r)
        sketches.emplace_back(known[r], thresholds_of(runs_[r]->*member, c));
      for (OutlierSet& set : merged) {
        set.lower.push_back(static_cast<float>(mixed_quantile(sketches, set.fraction / 2)));
        set.upper.push_back(static_cast<float>(mixed_quantile(sketches, 1 - set.fraction / 2)));
        if (is_storable(normaliser(set.lower.back(), set.upper.back()))) continue;
        throw base::InvalidInput(
            concat("channel ", c, ": the runs' thresholds together, ", set.lower.back(), " and ",
                   set.upper.back(), ", give a scale or zero beyond fp16 (65504), in which they are stored"));
      }
    }
  }

  // Ascending: fractions do, and so narrow.
  static std::vector<double> thresholds_of(const std::vector<OutlierSet>& sets, std::size_t channel) {
    std::vector<double> values;
    for (const OutlierSet& set : sets) values.push_back(double{set.lower[channel]});
    for (auto set = sets.rbegin(); set != sets.rend(); ++set) values.push_back(double{set->upper[channel]});
    return values;
  }

  // What a squared error of 1 in the units of x costs in a channel, but for its sensitivity. Where all sensitivities are zero every
  // number's normalised error counts the same.
  [[nodiscard]] double cost_of(const Normaliser& range, const Datatype& datatype) const {
    if (rules_.range_weights && datatype.weights != kUniform) return 1;
    return range.range > 0 ? 1 / (range.range * range.range) : 0;
  }

  // Of what was summed with gradients.
  [[nodiscard]] double factor_of(std::size_t run, const Datatype& datatype) const {
    return datatype.weights == kUniform ? 1 : samples_[run].fisher_factor;
  }

  [[nodiscard]] std::vector<Normaliser> threshold_ranges(const OutlierSet& set) const {
    std::vector<Normaliser> ranges;
    for (std::size_t c = 0; c < set.lower.size(); ++c)
      ranges.push_back(normaliser(set.lower[c], set.upper[c]));
    if (!by_channel()) ranges.push_back({0, 1});
    return ranges;
  }

  [[nodiscard]] std::vector<Normaliser> ranges_of(const OutlierSet& set, const Datatype& datatype) const {
    if (!datatype.has_ranges()) return threshold_ranges(set);
    std::vector<Normaliser> ranges;
    for (std::size_t c = 0; c < datatype.scale.size(); ++c)
      ranges.push_back({double{datatype.zero[c]}, double{datatype.scale[c]}});
    return ranges;
  }

  // Of sensitivities that are zero in one run the others say more.
  [[nodiscard]] static bool counts(const std::vector<const Datatype*>& datatypes, std::size_t run) {
    return datatypes[run]->weights != kUniform ||
           std::ranges::all_of(datatypes,
                               [](const Datatype* datatype) { return datatype->weights == kUniform; });
  }

  [[nodiscard]] RunLevels run_levels(std::size_t run, const OutlierSet& set, const Datatype& datatype,
                                     const std::vector<Normaliser>& merged) const {
    const std::vector<double> own(datatype.centroids.begin(), datatype.centroids.end());
    RunLevels levels{
        own,
        datatype.has_ranges() ? WeightSpread(datatype.histogram, own) : WeightSpread(set.histogram),
        ranges_of(set, datatype),
        {}};
    if (!by_channel()) {
      levels.weights.push_back(tokens_weight(run, set, datatype));
      return levels;
    }
    for (std::size_t c = 0; c < channels(); ++c) {
      const double sensitivity =
          datatype.weights == kUniform ? static_cast<double>(samples_[run].counted) : fisher_[run][c];
      levels.weights.push_back(sensitivity * cost_of(merged[c], datatype));
    }
    return levels;
  }

  Datatype mix_datatypes(const std::vector<const OutlierSet*>& sets, std::size_t index,
                         const OutlierSet& merged_set, std::vector<MergedError>* errors) const {
    std::vector<const Datatype*> datatypes;
    for (const OutlierSet* set : sets) datatypes.push_back(&set->datatypes[index]);
    const std::vector<Normaliser> of_thresholds = threshold_ranges(merged_set);
    std::vector<RunLevels> runs;
    bool fitted = false;
    Datatype mixed;
    mixed.bits = datatypes.front()->bits;
    for (std::size_t r = 0; r < sets.size(); ++r) {
      if (!counts(datatypes, r)) continue;
      runs.push_back(run_levels(r, *sets[r], *datatypes[r], of_thresholds));
      mixed.objective += datatypes[r]->objective * factor_of(r, *datatypes[r]);
      mixed.weights = datatypes[r]->weights;
      fitted = fitted || datatypes[r]->has_ranges();
    }
    const MixedLevels found = fitted ? mix_levels(runs) : mix_levels(runs, of_thresholds);
    if (errors != nullptr)
      errors->push_back({{mixed.bits, merged_set.fraction, false}, mixed.objective, found.excess});
    mixed.objective += found.excess;
    if (fitted)
      set_ranges(mixed, found);
    else
      mixed.centroids.assign(found.levels.begin(), found.levels.end());
    mix_qnorm(mixed, datatypes);
    if (fitted) mix_histogram(mixed, datatypes);
    return mixed;
  }

  // In the units in which the levels reach from -1 to 1. A range that fp16 rounds to 0 is that of a constant channel.
  static void set_ranges(Datatype& datatype, const MixedLevels& found) {
    const double low = found.levels.front(), high = found.levels.back();
    const double middle = (high + low) / 2, half = high > low ? (high - low) / 2 : 1;
    for (const double level : found.levels)
      datatype.centroids.push_back(static_cast<float>((level - middle) / half));
    for (const Normaliser& range : found.ranges) {
      Normaliser moved{range.zero + range.range * middle, range.range * half};
      if (codec::float_to_half(static_cast<float>(moved.range)) == 0) moved.range = 0;
      if (!is_storable(moved)) {
        throw base::InvalidInput(concat("channel ", datatype.scale.size(), ": the runs' ranges together, ",
                                        moved.range, " about ", moved.zero,
                                        ", are beyond fp16 (65504), in which they are stored"));
      }
      datatype.scale.push_back(static_cast<float>(moved.range));
      datatype.zero.push_back(static_cast<float>(moved.zero));
    }
  }

  // By numbers, as they are found.
  void mix_qnorm(Datatype& mixed, const std::vector<const Datatype*>& datatypes) const {
    double all = 0;
    mixed.qnorm_scale = 0;
    for (std::size_t r = 0; r < datatypes.size(); ++r) {
      const auto counted = static_cast<double>(samples_[r].counted);
      mixed.qnorm_scale += counted * datatypes[r]->qnorm_scale;
      mixed.qnorm_offset += counted * datatypes[r]->qnorm_offset;
      all += counted;
    }
    mixed.qnorm_scale /= all;
    mixed.qnorm_offset /= all;
  }

  void mix_histogram(Datatype& mixed, const std::vector<const Datatype*>& datatypes) const {
    Histograms histograms;
    std::vector<double> weights;
    for (std::size_t r = 0; r < datatypes.size(); ++r) {
      if (!counts(datatypes, r) || !datatypes[r]->has_ranges()) continue;
      histograms.push_back(&datatypes[r]->histogram);
      weights.push_back(channels_weight(r, ranges_of({}, *datatypes[r])));
    }
    mixed.histogram = mean_shares(histograms, weights);
  }

  void mix_histogram(OutlierSet& mixed, const std::vector<const OutlierSet*>& sets) const {
    Histograms histograms;
    std::vector<double> weights;
    std::vector<const Datatype*> datatypes;
    for (const OutlierSet* set : sets) datatypes.push_back(&set->datatypes.front());
    for (std::size_t r = 0; r < sets.size(); ++r) {
      if (!counts(datatypes, r)) continue;
      histograms.push_back(&sets[r]->histogram);
      weights.push_back(by_channel() ? channels_weight(r, threshold_ranges(*sets[r]))
                                     : tokens_weight(r, *sets[r], sets[r]->datatypes.front()));
    }
    mixed.histogram = mean_shares(histograms, weights);
  }

  // In normalised units, as fits count it, of a tensor whose thresholds are a channel's.
  [[nodiscard]] double channels_weight(std::size_t run, const std::vector<Normaliser>& ranges) const {
    double weight = 0;
    for (std::size_t c = 0; c < channels(); ++c)
      weight += fisher_[run][c] * (rules_.range_weights ? std::pow(ranges[c].range, 2) : 1);
    return weight;
  }

  // The same where they are a token's: the file tells what error is left, and the histogram which share of the weight that is.
  [[nodiscard]] double tokens_weight(std::size_t run, const OutlierSet& set, const Datatype& datatype) const {
    const std::vector<double> levels(datatype.centroids.begin(), datatype.centroids.end());
    const double error = WeightSpread(set.histogram).squared_error(levels);
    return error > 0 ? datatype.objective * factor_of(run, datatype) / error : 0;
  }

  [[nodiscard]] formats::TensorMagnitudes magnitudes() const {
    std::vector<RunMagnitudes> all;
    for (std::size_t r = 0; r < runs_.size(); ++r)
      all.push_back({*runs_[r]->magnitudes, fisher_[r], samples_[r].tokens});
    return mix_magnitudes(all, runs_.front()->tensor.heads);
  }

  void find_spread() {
    if (!by_channel()) return;
    Nearness& nearness = merged_.nearness;
    const OutlierSet& widest = merged_.codebook.outliers.back();
    double total = 0, counted = 0;
    for (std::size_t c = 0; c < channels(); ++c) {
      const Normaliser range = normaliser(widest.lower[c], widest.upper[c]);
      if (range.range == 0) continue;
      const auto [lower_low, lower_high] = between_runs(&OutlierSet::lower, c);
      const auto [upper_low, upper_high] = between_runs(&OutlierSet::upper, c);
      const double spread = std::max(lower_high - lower_low, upper_high - upper_low) / range.range;
      total += spread;
      ++counted;
      if (spread <= nearness.widest_spread) continue;
      nearness.widest_spread = spread;
      nearness.widest_channel = static_cast<std::int64_t>(c);
    }
    nearness.threshold_spread = counted > 0 ? total / counted : 0;
  }

  [[nodiscard]] std::pair<double, double> between_runs(std::vector<float> OutlierSet::*thresholds,
                                                       std::size_t channel) const {
    std::vector<double> found;
    for (const TensorCodebook* run : runs_)
      found.push_back(double{(run->outliers.back().*thresholds)[channel]});
    const auto [low, high] = std::ranges::minmax(found);
    return {low, high};
  }

  std::vector<const TensorCodebook*> runs_;
  std::vector<RunSample> samples_;
  MergeRules rules_;
  std::vector<std::vector<double>> fisher_;  // [runs][channels], brought to one unit
  MergedTensor merged_;
};

}  // namespace

std::string merge_obstacle(const TensorCodebook& run) {
  if (!has_histograms(run.outliers) || !has_histograms(run.with_sinks))
    return "has datatypes without a histogram, as files of schema 1.0; calibrate anew";
  for (const auto* sets : {&run.outliers, &run.with_sinks, &run.rotated}) {
    for (std::size_t i = 1; i < sets->size(); ++i) {
      if (are_nested((*sets)[i], (*sets)[i - 1])) continue;
      return concat("has thresholds of outlier fraction ", (*sets)[i].fraction, " beyond those of ",
                    (*sets)[i - 1].fraction, "; is the file damaged?");
    }
  }
  return "";
}

std::string merge_difference(const TensorCodebook& first, const TensorCodebook& other) {
  const std::string contents = contents_of(other), expected = contents_of(first);
  if (contents != expected) return concat("holds ", contents, "; the first codebook holds ", expected);
  // Names round them.
  if (!std::ranges::equal(first.outliers, other.outliers, {}, &OutlierSet::fraction, &OutlierSet::fraction))
    return "has outlier fractions that differ from the first codebook's beyond the sixth digit";
  return "";
}

MergedTensor merge_tensors(std::span<const TensorCodebook* const> runs, std::span<const RunSample> samples,
                           const MergeRules& rules) {
  return Merger(runs, samples, rules).merge();
}

}  // namespace kvcal::calib
