// kvcal kmeans: the solver alone.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/sizes.h"
#include "base/error.h"
#include "formats/npy.h"
#include "kmeans/weighted_kmeans.h"

namespace kvcal::apps {
namespace {

using base::concat;

struct KmeansOptions {
  std::filesystem::path points, weights;
  std::int64_t clusters = 0;
  double gap = 0;
  int threads = 0;
  JsonOutput json;
};

void add_options(CommandLine& line, KmeansOptions& options) {
  line.app()
      .add_option("-x,--x", options.points, "The points: float16, float32 or float64 .npy of any shape")
      ->type_name("FILE.npy");
  line.app()
      .add_option("-w,--weights", options.weights,
                  "A weight for each point, 0 or more; by default each weighs 1")
      ->type_name("FILE.npy");
  line.add_count("-k,--k", options.clusters, 1, 256, "How many centroids, 1 to 256");
  line.app()
      .add_option_function<std::string>(
          "--gap",
          [&options](const std::string& text) {
            options.gap = parse_number(text, "--gap");
            if (options.gap < 0) throw base::WrongUsage(concat("--gap is ", text, ": the least is 0"));
          },
          "May stop once the objective is proven to be within this share of the optimum; 0, the default, is "
          "the optimum")
      ->type_name("X");
  line.add_threads(options.threads);
  line.add_json(options.json);
}

std::vector<double> read_doubles(const formats::NpyFile& file) {
  if (file.dtype() != formats::Dtype::F64) {
    const std::vector<float> values = file.floats();
    return {values.begin(), values.end()};
  }
  std::vector<double> values(static_cast<std::size_t>(file.size()));
  if (!values.empty()) std::memcpy(values.data(), file.data().data(), values.size() * sizeof(double));
  return values;
}

kmeans::Solution solve(const KmeansOptions& options, std::int64_t& count) {
  const formats::NpyFile points(options.points);
  count = points.size();
  const kmeans::Options solver{static_cast<int>(options.clusters), options.gap, options.threads};
  const auto size = static_cast<std::size_t>(count);
  if (options.weights.empty()) {
    if (points.dtype() == formats::Dtype::F64) {
      return kmeans::solve(read_doubles(points), std::vector<double>(size, 1), solver);
    }
    return kmeans::solve(points.floats(), std::vector<float>(size, 1), solver);
  }
  const formats::NpyFile weights(options.weights);
  if (weights.size() != count) {
    throw base::InvalidInput(concat(options.weights.string(), " has ", weights.size(), " weights and ",
                                    options.points.string(), " ", count,
                                    " points; give one weight for each point"));
  }
  if (points.dtype() == formats::Dtype::F64 || weights.dtype() == formats::Dtype::F64) {
    return kmeans::solve(read_doubles(points), read_doubles(weights), solver);
  }
  return kmeans::solve(points.floats(), weights.floats(), solver);
}

void print_solution(const kmeans::Solution& solution, std::int64_t count, double seconds) {
  const auto exact = [](double value) { return format_number(value, 17); };
  std::string text = concat(format_count(count), " points, ", solution.centroids.size(), " centroids in ",
                            format_duration(seconds), "\nobjective    ", exact(solution.objective),
                            "\nlower bound  ", exact(solution.lower_bound), "\n");
  for (const double centroid : solution.centroids) text += exact(centroid) + "\n";
  print(text);
}

}  // namespace

int run_kmeans(const std::vector<std::string>& arguments) {
  KmeansOptions options;
  CommandLine line(
      "kmeans",
      "The optimal centroids of weighted numbers: no k centroids have a smaller sum of weight times squared "
      "distance to the nearest.",
      "  kvcal kmeans --x keys.npy --weights fisher.npy \\\n"
      "      --k 8 --json -");
  add_options(line, options);
  if (!line.parse(arguments)) return kDone;
  require(!options.points.empty(), "--x", "name the .npy file with the points");
  require(options.clusters > 0, "--k", "say how many centroids, such as --k 8");
  options.json.check({options.points, options.weights});

  const auto start = std::chrono::steady_clock::now();
  std::int64_t count = 0;
  kmeans::Solution solution;
  try {
    solution = solve(options, count);
  } catch (const base::InvalidInput& error) {
    const std::string what = error.what();
    if (what.find(options.points.string()) != std::string::npos) throw;
    throw base::InvalidInput(concat(options.points.string(),
                                    options.weights.empty() ? "" : concat(", ", options.weights.string()),
                                    ": ", what));
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  options.json.write({{"n", count},
                      {"k", options.clusters},
                      {"centroids", solution.centroids},
                      {"objective", solution.objective},
                      {"lower_bound", solution.lower_bound},
                      {"seconds", seconds}});
  if (!options.json.to_stdout()) print_solution(solution, count, seconds);
  return kDone;
}

}  // namespace kvcal::apps
