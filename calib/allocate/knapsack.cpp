#include "calib/allocate/knapsack.h"

#include <algorithm>
#include <limits>

#include "base/checked.h"
#include "base/error.h"

namespace kvcal::calib {
namespace {

// Sums of costs differ by rounding with their order.
constexpr double kRounding = 1e-12;

/// An option of an item, by its place there.
struct Step {
  std::size_t option = 0;
  std::int64_t bytes = 0;
  double cost = 0;
};

// An item's options by bytes, each cheaper in cost than all smaller ones.
std::vector<Step> frontier(const std::vector<KnapsackOption>& options) {
  std::vector<Step> steps;
  for (std::size_t i = 0; i < options.size(); ++i) steps.push_back({i, options[i].bytes, options[i].cost});
  std::ranges::stable_sort(steps, [](const Step& a, const Step& b) {
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.cost < b.cost;
  });
  std::vector<Step> kept;
  for (const Step& step : steps)
    if (kept.empty() || step.cost < kept.back().cost) kept.push_back(step);
  return kept;
}

/// From one option of an item to a larger one on its lower convex hull.
struct Increment {
  std::size_t item = 0;
  std::int64_t bytes = 0;
  double gain = 0;  // of cost, for all its bytes

  [[nodiscard]] double rate() const { return gain / static_cast<double>(bytes); }
};

void add_hull(std::size_t item, const std::vector<Step>& steps, std::vector<Increment>& increments) {
  std::vector<Step> hull;
  for (const Step& step : steps) {
    const auto bends_up = [&] {
      const Step &a = hull[hull.size() - 2], &b = hull.back();
      return (a.cost - b.cost) * static_cast<double>(step.bytes - b.bytes) <=
             (b.cost - step.cost) * static_cast<double>(b.bytes - a.bytes);
    };
    while (hull.size() > 1 && bends_up()) hull.pop_back();
    hull.push_back(step);
  }
  for (std::size_t i = 1; i < hull.size(); ++i)
    increments.push_back({item, hull[i].bytes - hull[i - 1].bytes, hull[i - 1].cost - hull[i].cost});
}

/// The items of a knapsack, and the increments of all of them, those of the best rate first.
struct Prepared {
  std::vector<std::vector<Step>> items;
  std::vector<Increment> increments;

  explicit Prepared(const KnapsackItems& all) {
    for (const std::vector<KnapsackOption>& options : all) {
      items.push_back(frontier(options));
      add_hull(items.size() - 1, items.back(), increments);
    }
    // An item's own keep their order: its rates fall.
    std::ranges::stable_sort(increments,
                             [](const Increment& a, const Increment& b) { return a.rate() > b.rate(); });
  }
};

/// What the items from one on can reach with some bytes: the linear relaxation, which takes the last increment in part.
class Relaxation {
 public:
  Relaxation(const Prepared& prepared, std::size_t first) {
    for (std::size_t i = first; i < prepared.items.size(); ++i) {
      least_bytes_ += prepared.items[i].front().bytes;
      most_cost_ += prepared.items[i].front().cost;
    }
    bytes_.push_back(0);
    gains_.push_back(0);
    for (const Increment& increment : prepared.increments) {
      if (increment.item < first) continue;
      bytes_.push_back(bytes_.back() + increment.bytes);
      gains_.push_back(gains_.back() + increment.gain);
    }
  }

  [[nodiscard]] bool fits(std::int64_t bytes) const { return bytes >= least_bytes_; }
  /// The cost of whole increments, those of the best rates: of a choice there is.
  [[nodiscard]] double rounded(std::int64_t bytes) const { return most_cost_ - gains_[whole(bytes)]; }
  /// What no choice goes below.
  [[nodiscard]] double bound(std::int64_t bytes) const {
    const std::size_t i = whole(bytes);
    const double cost = most_cost_ - gains_[i];
    if (i + 1 == gains_.size()) return cost;
    const auto rest = static_cast<double>(bytes - least_bytes_ - bytes_[i]);
    return cost - (gains_[i + 1] - gains_[i]) * rest / static_cast<double>(bytes_[i + 1] - bytes_[i]);
  }

 private:
  // How many increments fit.
  [[nodiscard]] std::size_t whole(std::int64_t bytes) const {
    return static_cast<std::size_t>(std::ranges::upper_bound(bytes_, bytes - least_bytes_) - bytes_.begin()) -
           1;
  }

  std::int64_t least_bytes_ = 0;
  double most_cost_ = 0;
  std::vector<std::int64_t> bytes_;  // of the first increments
  std::vector<double> gains_;
};

/// A sum over the first items.
struct State {
  std::int64_t bytes = 0;
  double cost = 0;
  std::uint32_t parent = 0;  // among the states of one item fewer
  std::uint32_t step = 0;    // of the last item's frontier
};

class Solver {
 public:
  Solver(const KnapsackItems& items, std::int64_t budget, std::size_t states)
      : prepared_(items), budget_(budget), most_states_(std::max<std::size_t>(2, states / items.size())) {
    const Relaxation all(prepared_, 0);
    incumbent_ = all.rounded(budget);
    rounding_ = kRounding * (all.rounded(smallest_bytes(items)) + incumbent_);
  }

  KnapsackChoice solve() {
    levels_.push_back({State{}});
    for (std::size_t i = 0; i < prepared_.items.size(); ++i) levels_.push_back(extend(i));
    const State& best = levels_.back().back();
    KnapsackChoice choice{std::vector<std::size_t>(prepared_.items.size()), best.bytes, best.cost,
                          std::min(best.cost, dropped_)};
    const State* state = &best;
    for (std::size_t i = prepared_.items.size(); i-- > 0; state = &levels_[i][state->parent])
      choice.options[i] = prepared_.items[i][state->step].option;
    return choice;
  }

 private:
  // By bytes, cost falling: the sums with one more item that may still become the best.
  std::vector<State> extend(std::size_t item) {
    const std::vector<State>& before = levels_.back();
    std::vector<State> sums;
    sums.reserve(before.size() * prepared_.items[item].size());
    for (std::uint32_t step = 0; step < prepared_.items[item].size(); ++step) {
      const Step& option = prepared_.items[item][step];
      const auto middle = static_cast<std::ptrdiff_t>(sums.size());
      for (std::uint32_t parent = 0; parent < before.size(); ++parent)
        sums.push_back(
            {before[parent].bytes + option.bytes, before[parent].cost + option.cost, parent, step});
      std::inplace_merge(sums.begin(), sums.begin() + middle, sums.end(), [](const State& a, const State& b) {
        return a.bytes != b.bytes ? a.bytes < b.bytes : a.cost < b.cost;
      });
    }
    const Relaxation rest(prepared_, item + 1);
    std::vector<State> kept;
    for (const State& sum : sums) {
      const std::int64_t left = budget_ - sum.bytes;
      if (!rest.fits(left)) break;
      if (!kept.empty() && sum.cost >= kept.back().cost) continue;
      incumbent_ = std::min(incumbent_, sum.cost + rest.rounded(left));
      kept.push_back(sum);
    }
    std::erase_if(kept, [&](const State& sum) {
      return sum.cost + rest.bound(budget_ - sum.bytes) > incumbent_ + rounding_;
    });
    if (kept.size() > most_states_) shorten(kept, rest);
    return kept;
  }

  void shorten(std::vector<State>& states, const Relaxation& rest) {
    const auto bound = [&](const State& state) { return state.cost + rest.bound(budget_ - state.bytes); };
    const auto cut = states.begin() + static_cast<std::ptrdiff_t>(most_states_);
    std::ranges::nth_element(states, cut, {}, bound);
    for (auto state = cut; state != states.end(); ++state) dropped_ = std::min(dropped_, bound(*state));
    states.erase(cut, states.end());
    std::ranges::sort(states, {}, &State::bytes);
    // A choice of what was dropped can be reached no more.
    incumbent_ = std::numeric_limits<double>::infinity();
    for (const State& state : states)
      incumbent_ = std::min(incumbent_, state.cost + rest.rounded(budget_ - state.bytes));
  }

  Prepared prepared_;
  std::int64_t budget_;
  std::size_t most_states_;  // of a level
  double incumbent_ = 0;     // the cost of the best choice known
  double rounding_ = 0;
  double dropped_ =
      std::numeric_limits<double>::infinity();  // the least bound of what was dropped for want of room
  std::vector<std::vector<State>> levels_;
};

}  // namespace

std::int64_t smallest_bytes(const KnapsackItems& items) {
  std::int64_t sum = 0;
  for (const std::vector<KnapsackOption>& options : items) {
    const std::int64_t least = std::ranges::min(options, {}, &KnapsackOption::bytes).bytes;
    sum = base::checked_add(sum, least, "the smallest choice");
  }
  return sum;
}

KnapsackChoice choose_options(const KnapsackItems& items, std::int64_t budget, std::size_t states) {
  const std::int64_t least = smallest_bytes(items);
  if (budget < least)
    throw base::InvalidInput(
        base::concat("a budget of ", budget, " bytes, and the smallest choice takes ", least));
  if (items.empty()) return {};
  return Solver(items, budget, states).solve();
}

std::vector<KnapsackPoint> knapsack_curve(const KnapsackItems& items) {
  const Prepared prepared(items);
  KnapsackPoint point;
  for (const std::vector<Step>& steps : prepared.items) {
    point.bytes += steps.front().bytes;
    point.cost += steps.front().cost;
  }
  std::vector<KnapsackPoint> curve = {point};
  for (const Increment& increment : prepared.increments) {
    point.bytes += increment.bytes;
    point.cost -= increment.gain;
    curve.push_back(point);
  }
  return curve;
}

}  // namespace kvcal::calib
