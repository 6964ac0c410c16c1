// codec_bench: values per second of the codec by rows, beside std::memcpy of the same float32 matrix.
//
// One matrix of 2048 tokens and 1024 channels, 8 MiB: normal numbers, each channel with a scale of its own.
// Encoding includes the allocation of what it gives back; decoding writes to memory that is there already.
// Times are of the wall clock. row_threads is RowOptions::threads: 0 takes all CPUs that the process may use.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/row_codec.h"
#include "cuda/vector_codec.h"

namespace kvcal::codec {
namespace {

constexpr std::size_t kTokens = 2048, kChannels = 1024;
constexpr std::size_t kValues = kTokens * kChannels;
constexpr std::int64_t kOutliersPerMille = 10;  // the fraction 0.01

std::vector<float> make_matrix() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> scales(kChannels);
  for (float& scale : scales) scale = std::exp(normal(random));
  std::vector<float> x(kValues);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = normal(random) * scales[i % kChannels];
  return x;
}

const std::vector<float>& matrix() {
  static const std::vector<float> x = make_matrix();
  return x;
}

// Thresholds as a calibration finds them: each channel's quantiles over all tokens.
KeyNormaliser make_normaliser(double outlier_fraction) {
  std::vector<float> lower, upper, column(kTokens);
  for (std::size_t c = 0; c < kChannels; ++c) {
    for (std::size_t t = 0; t < kTokens; ++t) column[t] = matrix()[t * kChannels + c];
    lower.push_back(quantile(column, outlier_fraction / 2));
    upper.push_back(quantile(column, 1 - outlier_fraction / 2));
  }
  return {lower, upper, outlier_fraction};
}

// Evenly spaced centroids: where they lie changes nothing in what is computed.
Datatype even_datatype(std::int64_t bits) {
  std::vector<float> centroids;
  const int last = (1 << bits) - 1;
  for (int i = 0; i <= last; ++i)
    centroids.push_back(2.0F * static_cast<float>(i) / static_cast<float>(last) - 1.0F);
  return make_datatype(centroids);
}

/// What the arguments of a benchmark say, in the order of every_setting().
struct Setting {
  Datatype datatype;
  ValueOptions value;
  RowOptions rows;

  explicit Setting(const benchmark::State& state) : datatype(even_datatype(state.range(0))) {
    value.outlier_fraction = static_cast<double>(state.range(1)) / 1000;
    rows.threads = static_cast<int>(state.range(2));
  }
  // Made once for each of the two fractions.
  [[nodiscard]] const KeyNormaliser& normaliser() const {
    static const KeyNormaliser without = make_normaliser(0);
    static const KeyNormaliser with = make_normaliser(static_cast<double>(kOutliersPerMille) / 1000);
    return value.outlier_fraction > 0 ? with : without;
  }
};

void every_setting(benchmark::internal::Benchmark* measured) {
  measured->ArgNames({"bits", "outliers_per_mille", "row_threads"})
      ->ArgsProduct({{2, 3, 4}, {0, kOutliersPerMille}, {1, 0}})
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
}

void count_values(benchmark::State& state) {
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(kValues));
}

void measure_memcpy(benchmark::State& state) {
  const std::vector<float>& x = matrix();
  std::vector<float> to(kValues);
  for (auto _ : state) {
    std::memcpy(to.data(), x.data(), kValues * sizeof(float));
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
  }
  count_values(state);
}

void measure_encode_keys(benchmark::State& state) {
  const Setting setting(state);
  const KeyNormaliser& normaliser = setting.normaliser();
  const std::vector<float>& x = matrix();
  for (auto _ : state) {
    const PackedRows packed = encode_keys(x, normaliser, setting.datatype, setting.rows);
    benchmark::DoNotOptimize(packed.codes.data());
    benchmark::ClobberMemory();
  }
  count_values(state);
}

void measure_decode_keys(benchmark::State& state) {
  const Setting setting(state);
  const KeyNormaliser& normaliser = setting.normaliser();
  const PackedRows packed = encode_keys(matrix(), normaliser, setting.datatype, {});
  std::vector<float> to(kValues);
  for (auto _ : state) {
    decode_keys(packed, normaliser, setting.datatype, to, setting.rows.threads);
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
  }
  count_values(state);
}

void measure_encode_values(benchmark::State& state) {
  const Setting setting(state);
  const std::vector<float>& x = matrix();
  for (auto _ : state) {
    const PackedRows packed = encode_values(x, kChannels, setting.value, setting.datatype, setting.rows);
    benchmark::DoNotOptimize(packed.codes.data());
    benchmark::ClobberMemory();
  }
  count_values(state);
}

void measure_decode_values(benchmark::State& state) {
  const Setting setting(state);
  const PackedRows packed = encode_values(matrix(), kChannels, setting.value, setting.datatype, {});
  std::vector<float> to(kValues);
  for (auto _ : state) {
    decode_values(packed, setting.datatype, to, setting.rows.threads);
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
  }
  count_values(state);
}

BENCHMARK(measure_memcpy)->Name("memcpy")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(measure_encode_keys)->Name("encode_keys")->Apply(every_setting);
BENCHMARK(measure_decode_keys)->Name("decode_keys")->Apply(every_setting);
BENCHMARK(measure_encode_values)->Name("encode_values")->Apply(every_setting);
BENCHMARK(measure_decode_values)->Name("decode_values")->Apply(every_setting);

}  // namespace
}  // namespace kvcal::codec
