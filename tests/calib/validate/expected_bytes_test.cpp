// What each method says a sequence takes, beside what it stores.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "calib/validate/cache_method.h"

namespace kvcal::calib {
namespace {

using formats::ThresholdScope;

constexpr int kHeads = 3, kDim = 64;
constexpr std::int64_t kSinks = 2;

// Thresholds beyond all of the normal numbers below: a key is no outlier.
formats::TensorCodebook tensor_codebook(const char* name, ThresholdScope scope) {
  formats::TensorCodebook codebook;
  codebook.tensor = {name, kHeads, kDim, scope};
  const auto channels = static_cast<std::size_t>(codebook.tensor.channels());
  for (const double fraction : {0.0, 0.01, 0.05}) {
    formats::OutlierSet set;
    set.fraction = fraction;
    if (scope == ThresholdScope::channel) {
      set.lower.assign(channels, -9);
      set.upper.assign(channels, 9);
    }
    for (const int bits : {2, 3, 4}) {
      formats::Datatype datatype;
      datatype.bits = bits;
      for (int i = 0; i < 1 << bits; ++i) datatype.centroids.push_back(-0.9F + 0.1F * static_cast<float>(i));
      set.datatypes.push_back(datatype);
    }
    codebook.outliers.push_back(set);
    codebook.with_sinks.push_back(set);
    if (fraction == 0) codebook.rotated.push_back(set);
  }
  return codebook;
}

formats::Codebook sample(const char* value_scope) {
  formats::Codebook codebook;
  codebook.calibration.sinks = kSinks;
  codebook.calibration.value_scope = value_scope;
  codebook.layers.push_back({});
  codebook.layers.back().tensors = {tensor_codebook("key", ThresholdScope::channel),
                                    tensor_codebook("value", ThresholdScope::token)};
  return codebook;
}

// No two the same, so that as many lie beyond a quantile as it says.
std::vector<float> distinct(std::size_t count) {
  std::mt19937 generator(5);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& value : x) value = std::clamp(normal(generator), -8.0F, 8.0F);
  return x;
}

// An outlier of a key, which chance decides, takes its index and its number.
std::int64_t bytes_of_missing_outliers(const std::string& method, const formats::CachedTensor& tensor,
                                       std::int64_t tokens) {
  const std::size_t percent = method.find('%');
  const bool chance = tensor.thresholds == ThresholdScope::channel && percent != std::string::npos &&
                      method.find("-paged") == std::string::npos &&
                      method.find("-kernels") == std::string::npos;
  if (!chance) return 0;
  const double fraction = std::stod(method.substr(method.find('-') + 1, percent)) / 100;
  const std::int64_t sinks = method.ends_with("-nosink") ? 0 : std::min(kSinks, tokens);
  return 4 * std::llround(fraction * static_cast<double>((tokens - sinks) * tensor.channels()));
}

void expect_as_stored(const formats::Codebook& codebook) {
  for (const std::string& name : served_methods(&codebook)) {
    // Those write what -paged does, lane by lane.
    if (name == kFullPrecision || name.ends_with(kKernelsSuffix)) continue;
    const auto method = make_method(name, &codebook);
    for (const formats::TensorCodebook& of : codebook.layers.front().tensors) {
      const auto storage = method->storage(0, of.tensor);
      for (const std::int64_t tokens : {0, 1, 2, 3, 63, 64, 65, 130, 300}) {
        const std::vector<float> x = distinct(static_cast<std::size_t>(tokens * of.tensor.channels()));
        std::vector<float> read(x.size());
        EXPECT_EQ(storage->expected_bytes(tokens),
                  storage->store(0, x, read).bytes + bytes_of_missing_outliers(name, of.tensor, tokens))
            << name << ", " << of.tensor.name << ", " << tokens << " tokens";
      }
    }
  }
}

TEST(ExpectedBytes, AreThoseThatEveryMethodStores) {
  expect_as_stored(sample("token"));
}

TEST(ExpectedBytes, AreThoseOfValuesByHead) {
  expect_as_stored(sample("head"));
}

}  // namespace
}  // namespace kvcal::calib
