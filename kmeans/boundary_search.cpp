#include "kmeans/boundary_search.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

namespace kvcal::kmeans {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Positions laid over the windows of a cut in a round: more cost time, fewer cost rounds.
constexpr std::int64_t kPositions = 256;
// From round to round cells shrink by this at least.
constexpr std::int64_t kZoom = 4;
// At single runs, another round is worth its while when the last one closed this share of the windows.
constexpr double kWorthwhile = 0.25;
constexpr int kExtraRounds = 3;

// A round's positions for one cut, as indices into Level::position.
// Between neighbours lies a cell, where open.
struct Candidates {
  std::vector<std::int32_t> at;
  std::vector<char> open;          // [at.size() - 1]
  std::vector<double> cell_bonus;  // [at.size() - 1]
  std::vector<double> edge_bonus;  // [at.size()]: the larger of the two beside it
};

// The positions of all cuts of a round, and the sums between them. candidates[0] is the start of the line,
// candidates[k] its end.
struct Level {
  std::vector<std::int64_t> position;
  std::vector<Candidates> candidates;
  RunTable table;
};

std::int64_t total_length(std::span<const Range> ranges) {
  std::int64_t length = 0;
  for (const Range& range : ranges) length += range.end - range.begin;
  return length;
}

std::int64_t total_length(const Windows& windows) {
  std::int64_t length = 0;
  for (const auto& ranges : windows) length += total_length(ranges);
  return length;
}

// All positions of a round: the ends of all ranges, and between them every `steps[j]` for cut j.
std::vector<std::int64_t> lay_positions(std::int64_t size, const Windows& windows,
                                        std::span<const std::int64_t> steps) {
  std::vector<std::int64_t> all{0, size};
  for (std::size_t j = 0; j < windows.size(); ++j) {
    for (const Range& range : windows[j]) {
      for (std::int64_t p = range.begin; p < range.end; p += steps[j]) all.push_back(p);
      all.push_back(range.end);
    }
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

// Those of the positions that lie in the ranges of one cut. Where the ranges of two cuts overlap, both get
// the same cells: the proof needs that (cuts moved out of one cell keep their order).
Candidates choose_positions(std::span<const std::int64_t> all, std::span<const Range> ranges) {
  Candidates own;
  auto next = all.begin();
  for (const Range& range : ranges) {
    if (!own.at.empty()) own.open.push_back(0);
    next = std::lower_bound(next, all.end(), range.begin);
    for (; *next < range.end; ++next) {
      own.at.push_back(static_cast<std::int32_t>(next - all.begin()));
      own.open.push_back(1);
    }
    own.at.push_back(static_cast<std::int32_t>(next - all.begin()));
  }
  return own;
}

Level make_level(const RunTree& runs, const Windows& windows, std::span<const std::int64_t> steps) {
  std::vector<std::int64_t> all = lay_positions(runs.size(), windows, steps);
  std::vector<Candidates> candidates;
  candidates.reserve(windows.size() + 2);
  candidates.push_back({.at = {0}, .open = {}, .cell_bonus = {}, .edge_bonus = {}});
  for (const auto& ranges : windows) candidates.push_back(choose_positions(all, ranges));
  const auto last = static_cast<std::int32_t>(all.size() - 1);
  candidates.push_back({.at = {last}, .open = {}, .cell_bonus = {}, .edge_bonus = {}});
  std::vector<Run> between(all.size() - 1);
  for (std::size_t i = 0; i < between.size(); ++i) between[i] = runs.merged(all[i], all[i + 1]);
  return {std::move(all), std::move(candidates), RunTable(std::move(between))};
}

// Bounds on the bonus of each cell: a cut inside it between centroids `left` and `right` gains at most
// (right - left) sqrt(weight scatter) of the cell over the better of its edges.
class BonusBounds {
 public:
  BonusBounds(const RunTree& runs, const SearchOptions& options, const Level& level)
      : runs_(runs), options_(options), level_(level) {}

  [[nodiscard]] double bonus(std::size_t cut, std::size_t cell) const {
    const Candidates& own = level_.candidates[cut];
    const std::int32_t begin = own.at[cell];
    const std::int32_t end = own.at[cell + 1];
    const Run inside = level_.table.merged(begin, end);
    if (inside.scatter == 0) return 0;
    const Mean low = below(begin);
    const Mean high = above(end);
    const std::int32_t first = level_.candidates[cut - 1].at.front();
    const std::int32_t last = level_.candidates[cut + 1].at.back();
    const Mean left = first < begin ? level_.table.merged(first, begin).mean : low;
    const Mean right = last > end ? level_.table.merged(end, last).mean : high;
    // The cut is midway between the centroids, so each is at most as far from it as the other.
    const double apart =
        std::min({distance(left, right), 2 * distance(left, high), 2 * distance(low, right)});
    return std::max(apart, 0.0) * std::sqrt(inside.weight * inside.scatter);
  }

 private:
  // No point from the position on is less: the mean of the run before it is not, nor is the smallest of all.
  [[nodiscard]] Mean below(std::int32_t index) const {
    const std::int64_t p = level_.position[static_cast<std::size_t>(index)];
    return p > 0 ? runs_[p - 1].mean : options_.smallest;
  }
  // No point before the position is more.
  [[nodiscard]] Mean above(std::int32_t index) const {
    const std::int64_t p = level_.position[static_cast<std::size_t>(index)];
    return p < runs_.size() ? runs_[p].mean : options_.largest;
  }

  const RunTree& runs_;
  const SearchOptions& options_;
  const Level& level_;
};

// Returns the most that all cuts together can be given; 0 where every open cell is one point.
double set_bonuses(const RunTree& runs, const SearchOptions& options, Level& level) {
  const BonusBounds bounds(runs, options, level);
  double total = 0;
  for (std::size_t j = 0; j < level.candidates.size(); ++j) {
    double largest = 0;
    Candidates& own = level.candidates[j];
    own.cell_bonus.assign(own.open.size(), 0);
    own.edge_bonus.assign(own.at.size(), 0);
    for (std::size_t i = 0; i < own.open.size(); ++i) {
      if (own.open[i] == 0) continue;
      own.cell_bonus[i] = bounds.bonus(j, i);
      largest = std::max(largest, own.cell_bonus[i]);
      own.edge_bonus[i] = std::max(own.edge_bonus[i], own.cell_bonus[i]);
      own.edge_bonus[i + 1] = std::max(own.edge_bonus[i + 1], own.cell_bonus[i]);
    }
    total += largest;
  }
  return total;
}

// How exact a round's values are: relative to a cost, and to the bonuses that were taken from it.
struct Rounding {
  double relative = 0;
  double bonuses = 0;  // of all cuts together, at most
  [[nodiscard]] double of(double cost) const { return relative * (std::abs(cost) + bonuses); }
};

// One layer of the dynamic program: for each row the least of value[column] + cost(column, row), by divide
// and conquer over rows, for the best column never moves left as the row moves right (the cost is a Monge
// array). Columns that rounding can't tell from the best of a row may each be the best in truth, and then
// bound what is the best of other rows, whose costs can be smaller by any number of decades: all of them
// stay in.
class Layer {
 public:
  // forward: columns are positions before the rows,
  // and only those at most the row count; backward: after them.
  Layer(const RunTable& table, bool forward, std::span<const std::int32_t> rows,
        std::span<const std::int32_t> columns, std::span<const double> value, const Rounding& rounding)
      : table_(table),
        forward_(forward),
        rows_(rows),
        columns_(columns),
        value_(value),
        rounding_(rounding),
        sums_(columns.size(), kInfinity),
        least_(rows.size(), kInfinity),
        best_(rows.size(), 0) {
    solve(0, rows.size(), 0, columns.size());
  }

  [[nodiscard]] std::vector<double>& least() { return least_; }
  [[nodiscard]] std::vector<std::int32_t>& best() { return best_; }

 private:
  void solve(std::size_t row_begin, std::size_t row_end, std::size_t column_begin, std::size_t column_end) {
    while (row_begin < row_end) {
      const std::size_t row = row_begin + (row_end - row_begin) / 2;
      const BestColumns best = scan(row, column_begin, column_end);
      if (best.begin == best.end) {  // no column counts for this row: nor for those further from the columns
        if (forward_) {
          row_begin = row + 1;
        } else {
          row_end = row;
        }
        continue;
      }
      solve(row_begin, row, column_begin, best.end);
      row_begin = row + 1;
      column_begin = best.begin;
    }
  }

  // From the first to the last of the columns that may be a row's best.
  struct BestColumns {
    std::size_t begin = 0, end = 0;
  };

  BestColumns scan(std::size_t row, std::size_t column_begin, std::size_t column_end) {
    const std::int32_t at = rows_[row];
    if (forward_) {
      while (column_end > column_begin && columns_[column_end - 1] > at) --column_end;
    } else {
      while (column_begin < column_end && columns_[column_begin] < at) ++column_begin;
    }
    double least = kInfinity;
    std::size_t best = column_begin;
    for (std::size_t c = column_begin; c < column_end; ++c) {
      const double cost = forward_ ? table_.cost(columns_[c], at) : table_.cost(at, columns_[c]);
      sums_[c] = value_[c] + cost;
      if (sums_[c] < least) least = sums_[c], best = c;
    }
    least_[row] = least;
    best_[row] = static_cast<std::int32_t>(best);
    if (!(least < kInfinity)) return {};
    const double limit = least + 2 * rounding_.of(least);
    BestColumns columns{column_begin, column_end};
    while (sums_[columns.begin] > limit) ++columns.begin;
    while (sums_[columns.end - 1] > limit) --columns.end;
    return columns;
  }

  const RunTable& table_;
  bool forward_;
  std::span<const std::int32_t> rows_;
  std::span<const std::int32_t> columns_;
  std::span<const double> value_;
  Rounding rounding_;
  std::vector<double> sums_;  // of the row at hand
  std::vector<double> least_;
  std::vector<std::int32_t> best_;
};

// least[j][i]: the cost of the line up to the position i of cut j in j clusters, less the bonuses of the cuts
// before it. When `forward` is false: of the line from there on, less the bonuses of the cuts after it.
struct Program {
  std::vector<std::vector<double>> least;
  std::vector<std::vector<std::int32_t>> best;
};

Program run_program(const Level& level, bool forward, const Rounding& rounding) {
  const std::size_t layers = level.candidates.size();
  Program program{std::vector<std::vector<double>>(layers), std::vector<std::vector<std::int32_t>>(layers)};
  program.least[forward ? 0 : layers - 1] = {0.0};
  for (std::size_t step = 1; step < layers; ++step) {
    const std::size_t to = forward ? step : layers - 1 - step;
    const std::size_t from = forward ? to - 1 : to + 1;
    const Candidates& columns = level.candidates[from];
    std::vector<double> value = program.least[from];
    for (std::size_t i = 0; i < value.size(); ++i) value[i] -= columns.edge_bonus[i];
    Layer layer(level.table, forward, level.candidates[to].at, columns.at, value, rounding);
    program.least[to] = std::move(layer.least());
    program.best[to] = std::move(layer.best());
  }
  return program;
}

// The cuts of the forward program's optimum, and what they cost without bonuses.
void take_cuts(const Level& level, const Program& forward, Bracket& known) {
  const std::size_t clusters = level.candidates.size() - 1;
  std::vector<std::int64_t> cuts(clusters - 1);
  double cost = 0;
  std::size_t best = 0;
  for (std::size_t j = clusters; j > 0; --j) {
    const std::int32_t end = level.candidates[j].at[best];
    best = static_cast<std::size_t>(forward.best[j][best]);
    const std::int32_t begin = level.candidates[j - 1].at[best];
    cost += level.table.cost(begin, end);
    if (j > 1) cuts[j - 2] = level.position[static_cast<std::size_t>(begin)];
  }
  known.cuts = std::move(cuts);
  known.upper = std::min(known.upper, cost);
}

// The cells that an optimal cut can lie in:
// those that the two programs, with the bonus of the cell, bring below `limit`.
std::vector<Range> surviving(const Level& level, const Candidates& own, std::span<const double> before,
                             std::span<const double> after, double limit) {
  std::vector<Range> ranges;
  for (std::size_t i = 0; i < own.open.size(); ++i) {
    if (own.open[i] == 0) continue;
    const double value = std::min(before[i] + after[i], before[i + 1] + after[i + 1]) - own.cell_bonus[i];
    if (!(value <= limit)) continue;
    const std::int64_t begin = level.position[static_cast<std::size_t>(own.at[i])];
    const std::int64_t end = level.position[static_cast<std::size_t>(own.at[i + 1])];
    if (!ranges.empty() && ranges.back().end == begin) {
      ranges.back().end = end;
    } else {
      ranges.push_back({begin, end});
    }
  }
  return ranges;
}

// What the 106 digits of means, and the least that a double can hold, add to the error of any cost near
// `cost` (docs/solver.md). squares: sum w x^2.
double smallest_error(double cost, double squares) {
  return 0x1p-98 * std::sqrt(cost) * std::sqrt(squares) + 0x1p-196 * squares + 0x1p-1000;
}

void search_round(const RunTree& runs, const SearchOptions& options, std::span<const std::int64_t> steps,
                  Bracket& known) {
  Level level = make_level(runs, known.windows, steps);
  const Rounding rounding{options.rounding, set_bonuses(runs, options, level)};
  known.exact = rounding.bonuses == 0;
  const Program forward = run_program(level, true, rounding);
  const Program backward = run_program(level, false, rounding);
  take_cuts(level, forward, known);
  const Run whole = level.table.merged(0, level.candidates.back().at.front());
  const double squares = whole.scatter + whole.weight * whole.mean.high * whole.mean.high;
  const double margin = rounding.of(known.upper) + smallest_error(known.upper, squares);
  known.lower = std::max(known.lower, forward.least.back().front() - margin);
  for (std::size_t j = 0; j < known.windows.size(); ++j) {
    std::vector<Range> ranges = surviving(level, level.candidates[j + 1], forward.least[j + 1],
                                          backward.least[j + 1], known.upper + margin);
    if (!ranges.empty()) known.windows[j] = std::move(ranges);
  }
}

bool all_one(std::span<const std::int64_t> steps) {
  return std::all_of(steps.begin(), steps.end(), [](std::int64_t step) { return step == 1; });
}

}  // namespace

Windows open_windows(std::int64_t size, int clusters) {
  return Windows(static_cast<std::size_t>(clusters - 1), {Range{0, size}});
}

Bracket search_boundaries(const RunTree& runs, const SearchOptions& options, Bracket known) {
  std::vector<std::int64_t> steps(known.windows.size(), runs.size());
  int extra_rounds = 0;
  for (;;) {
    const std::int64_t length = total_length(known.windows);
    const bool finest = all_one(steps);
    for (std::size_t j = 0; j < steps.size(); ++j) {
      const std::int64_t step = std::min(steps[j] / kZoom, total_length(known.windows[j]) / kPositions);
      steps[j] = std::max<std::int64_t>(step, 1);
    }
    search_round(runs, options, steps, known);
    if (known.exact) return known;
    if (options.relative_gap > 0 && known.upper <= known.lower * (1 + options.relative_gap)) return known;
    if (!all_one(steps)) continue;
    const auto closed = static_cast<double>(length - total_length(known.windows));
    if (finest && (closed < kWorthwhile * static_cast<double>(length) || ++extra_rounds == kExtraRounds))
      return known;
  }
}

}  // namespace kvcal::kmeans
