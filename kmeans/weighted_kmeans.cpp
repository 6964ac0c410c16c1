#include "kmeans/weighted_kmeans.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"
#include "kmeans/boundary_search.h"
#include "kmeans/histogram.h"
#include "kmeans/run.h"
#include "kmeans/scan.h"

namespace kvcal::kmeans {
namespace {

constexpr int kMaxClusters = 256;
// Up to so many points all are sorted; a histogram would not pay.
constexpr std::int64_t kSortAll = std::int64_t{1} << 14;
// Bins for each point, and their limits: more bins cost cache misses, fewer leave more points to sort.
constexpr std::int64_t kPointsPerBin = 64;
constexpr std::int64_t kMinBins = std::int64_t{1} << 12;
constexpr std::int64_t kMaxBins = std::int64_t{1} << 15;

// The relative error of a sum of `count` points in the order in which the histogram adds them
// (docs/solver.md).
double rounding_bound(std::int64_t count) {
  return 0x1p-40 + 0x1p-64 * static_cast<double>(count);
}

void check_options(std::span<const int> clusters, double relative_gap) {
  for (const int k : clusters) {
    if (k < 1 || k > kMaxClusters) {
      throw base::WrongUsage(
          base::concat("k-means: ", k, " clusters asked for; expected 1 to ", kMaxClusters));
    }
  }
  if (!(relative_gap >= 0 && std::isfinite(relative_gap))) {
    throw base::WrongUsage(base::concat("k-means: a relative gap of ", relative_gap, "; expected 0 or more"));
  }
}

// One solve: the steps of solve_all() over whatever the input is.
template <typename Real>
class Solver {
 public:
  Solver(const ChunkReader<Real>& reader, std::span<const int> clusters, double relative_gap, int threads)
      : reader_(reader),
        clusters_(clusters),
        relative_gap_(relative_gap),
        threads_(threads),
        scan_(scan_points(reader, threads)),
        units_(scan_) {}

  [[nodiscard]] std::vector<Solution> run() {
    const std::size_t count = clusters_.size();
    std::vector<Solution> solutions(count);
    const std::int64_t bins =
        scan_.count <= kSortAll ? 0 : std::clamp(scan_.count / kPointsPerBin, kMinBins, kMaxBins);
    const Layout<Real> layout(scan_, units_, bins);
    if (bins == 0) {
      const std::vector<std::uint32_t> all(layout.num_bins(), 0);
      const RunTree points(gather_points(reader_, layout, units_, all, 1, threads_).points);
      for_each_k([&](std::size_t i) {
        Bracket known;
        known.windows = open_windows(points.size(), clusters_[i]);
        solutions[i] = solution(points, search(points, known), clusters_[i]);
      });
      return solutions;
    }
    const Histogram histogram = make_histogram(reader_, layout, units_, threads_);
    const RunTree runs(histogram.runs);
    std::vector<Bracket> brackets(count);
    for_each_k([&](std::size_t i) {
      Bracket known;
      known.windows = open_windows(runs.size(), clusters_[i]);
      brackets[i] = search(runs, known);
      if (done(brackets[i])) solutions[i] = solution(runs, brackets[i], clusters_[i]);
    });
    finish(layout, histogram, runs, brackets, solutions);
    return solutions;
  }

 private:
  template <typename Body>
  void for_each_k(const Body& body) const {
    base::parallel_for(static_cast<std::int64_t>(clusters_.size()), threads_,
                       [&](std::int64_t i) { body(static_cast<std::size_t>(i)); });
  }

  [[nodiscard]] bool done(const Bracket& bracket) const {
    return bracket.exact || (relative_gap_ > 0 && bracket.upper <= bracket.lower * (1 + relative_gap_));
  }

  [[nodiscard]] Bracket search(const RunTree& runs, const Bracket& known) const {
    return search_boundaries(runs,
                             {.relative_gap = relative_gap_,
                              .smallest = {units_.to_solver(double{scan_.smallest}), 0},
                              .largest = {units_.to_solver(double{scan_.largest}), 0},
                              .rounding = rounding_bound(scan_.count)},
                             known);
  }

  // The exact program over the points of the bins that the certificate left open, all other bins collapsed.
  void finish(const Layout<Real>& layout, const Histogram& histogram, const RunTree& runs,
              const std::vector<Bracket>& brackets, std::vector<Solution>& solutions) const {
    const std::vector<char> open = open_runs(runs.size(), brackets);
    std::vector<std::uint32_t> group_of(layout.num_bins(), kNotGathered);
    std::uint32_t groups = 0;
    for (std::size_t r = 0; r < open.size(); ++r) {
      // A bin without scatter is one point already.
      if (open[r] != 0 && histogram.runs[r].scatter > 0) group_of[histogram.bins[r]] = groups++;
    }
    if (groups == 0) return finish_on(runs, brackets, {}, solutions);
    const Gathered gathered = gather_points(reader_, layout, units_, group_of, groups, threads_);

    // The runs of the exact program, and where each of the histogram's begins among them.
    std::vector<Run> points;
    std::vector<std::int64_t> start;
    std::size_t collapsed_from = 0;
    for (std::size_t r = 0; r <= open.size(); ++r) {
      if (r < open.size() && open[r] == 0) {
        start.push_back(static_cast<std::int64_t>(points.size()));
        continue;
      }
      if (collapsed_from < r) {
        points.push_back(
            runs.merged(static_cast<std::int64_t>(collapsed_from), static_cast<std::int64_t>(r)));
      }
      collapsed_from = r + 1;
      start.push_back(static_cast<std::int64_t>(points.size()));
      if (r == open.size()) break;
      const std::uint32_t group = group_of[histogram.bins[r]];
      if (group == kNotGathered) {
        points.push_back(histogram.runs[r]);
      } else {
        points.insert(points.end(), gathered.points.begin() + gathered.offsets[group],
                      gathered.points.begin() + gathered.offsets[group + 1]);
      }
    }
    finish_on(RunTree(points), brackets, start, solutions);
  }

  // Whether a cut of any k can lie in a run.
  [[nodiscard]] std::vector<char> open_runs(std::int64_t size, const std::vector<Bracket>& brackets) const {
    std::vector<char> open(static_cast<std::size_t>(size), 0);
    for (const Bracket& bracket : brackets) {
      if (done(bracket)) continue;
      for (const auto& ranges : bracket.windows) {
        for (const Range& range : ranges)
          std::fill(open.begin() + range.begin, open.begin() + range.end, char{1});
      }
    }
    return open;
  }

  // start: [runs of the brackets + 1], where each begins in `runs`; empty where they are the same.
  void finish_on(const RunTree& runs, const std::vector<Bracket>& brackets,
                 const std::vector<std::int64_t>& start, std::vector<Solution>& solutions) const {
    for_each_k([&](std::size_t i) {
      if (done(brackets[i])) return;
      Bracket known = brackets[i];
      for (auto& ranges : known.windows) {
        if (start.empty()) break;
        for (Range& range : ranges) {
          range = {start[static_cast<std::size_t>(range.begin)], start[static_cast<std::size_t>(range.end)]};
        }
      }
      solutions[i] = solution(runs, search(runs, known), clusters_[i]);
    });
  }

  // Back to the units of the input.
  [[nodiscard]] Solution solution(const RunTree& runs, const Bracket& bracket, int clusters) const {
    Solution result;
    double objective = 0;
    std::int64_t begin = 0;
    for (std::size_t j = 0; j <= bracket.cuts.size(); ++j) {
      const std::int64_t end = j < bracket.cuts.size() ? bracket.cuts[j] : runs.size();
      if (end == begin) continue;
      const Run cluster = runs.merged(begin, end);
      objective += cluster.scatter;
      result.centroids.push_back(units_.from_solver(cluster.mean));
      begin = end;
    }
    result.centroids.resize(static_cast<std::size_t>(clusters), result.centroids.back());
    // Means are ascending but for rounding.
    std::sort(result.centroids.begin(), result.centroids.end());
    result.objective = units_.objective_from_solver(objective);
    result.lower_bound = units_.objective_from_solver(std::min(objective, bracket.lower));
    return result;
  }

  const ChunkReader<Real>& reader_;
  std::span<const int> clusters_;
  double relative_gap_;
  int threads_;
  Scan<Real> scan_;
  Units units_;
};

template <typename Real>
Solution solve_spans(std::span<const Real> points, std::span<const Real> weights, const Options& options) {
  const std::span<const int> clusters(&options.clusters, 1);
  check_options(clusters, options.relative_gap);
  const SpanReader<Real> reader(points, weights);
  return Solver<Real>(reader, clusters, options.relative_gap, options.threads).run().front();
}

template <typename Real>
std::vector<Solution> solve_source(const PointSource<Real>& source, std::span<const int> clusters,
                                   double relative_gap, int threads) {
  check_options(clusters, relative_gap);
  const SourceReader<Real> reader(source);
  return Solver<Real>(reader, clusters, relative_gap, threads).run();
}

}  // namespace

Solution solve(std::span<const float> points, std::span<const float> weights, const Options& options) {
  return solve_spans(points, weights, options);
}

Solution solve(std::span<const double> points, std::span<const double> weights, const Options& options) {
  return solve_spans(points, weights, options);
}

std::vector<Solution> solve_all(const PointSource<float>& source, std::span<const int> clusters,
                                double relative_gap, int threads) {
  return solve_source(source, clusters, relative_gap, threads);
}

std::vector<Solution> solve_all(const PointSource<double>& source, std::span<const int> clusters,
                                double relative_gap, int threads) {
  return solve_source(source, clusters, relative_gap, threads);
}

}  // namespace kvcal::kmeans
