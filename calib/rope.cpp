#include "calib/rope.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

namespace kvcal::calib {
namespace {

// llama3: wavelengths beyond original/low_freq_factor are stretched by factor, those below
// original/high_freq_factor kept.
double llama3_frequency(double frequency, const RopeConfig& rope) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const auto original = static_cast<double>(rope.original_max_positions);
  if (wavelength < original / rope.high_freq_factor) return frequency;
  if (wavelength > original / rope.low_freq_factor) return frequency / rope.factor;
  const double smooth =
      (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

}  // namespace

std::vector<double> inverse_frequencies(const RopeConfig& rope, int head_dim, std::int64_t tokens) {
  double theta = rope.theta;
  if (rope.type == "dynamic" && tokens > rope.original_max_positions) {
    const double stretch =
        rope.factor * static_cast<double>(tokens) / static_cast<double>(rope.original_max_positions) -
        (rope.factor - 1);
    theta *= std::pow(stretch, static_cast<double>(head_dim) / (head_dim - 2));
  }
  std::vector<double> frequencies(static_cast<std::size_t>(head_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(theta, -2.0 * static_cast<double>(i) / head_dim);
    if (rope.type == "linear") frequencies[i] /= rope.factor;
    if (rope.type == "llama3") frequencies[i] = llama3_frequency(frequencies[i], rope);
  }
  return frequencies;
}

RotaryTable rotary_table(const RopeConfig& rope, int head_dim, std::int64_t tokens) {
  const std::vector<double> frequencies = inverse_frequencies(rope, head_dim, tokens);
  RotaryTable table{at::empty({tokens, head_dim}, at::kFloat), at::empty({tokens, head_dim}, at::kFloat)};
  auto* cosines = table.cosines.data_ptr<float>();
  auto* sines = table.sines.data_ptr<float>();
  const auto half = static_cast<std::int64_t>(frequencies.size());
  for (std::int64_t position = 0; position < tokens; ++position) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = frequencies[static_cast<std::size_t>(i)] * static_cast<double>(position);
      for (const std::int64_t at : {position * head_dim + i, position * head_dim + i + half}) {
        cosines[at] = static_cast<float>(std::cos(angle));
        sines[at] = static_cast<float>(std::sin(angle));
      }
    }
  }
  return table;
}

at::Tensor rotate(const at::Tensor& x, const RotaryTable& table) {
  const at::Tensor wide = x.to(at::kFloat);
  const std::vector<at::Tensor> halves = wide.chunk(2, -1);
  const at::Tensor turned = at::cat({-halves[1], halves[0]}, -1);
  return (wide * table.cosines.unsqueeze(1) + turned * table.sines.unsqueeze(1)).to(x.scalar_type());
}

RotaryTable RotaryCache::table(std::int64_t tokens) {
  const auto length = [](const RotaryTable& table) {
    return table.cosines.defined() ? table.cosines.size(0) : std::int64_t{0};
  };
  const std::scoped_lock lock(mutex_);
  if (rope_.type == "dynamic" && tokens > rope_.original_max_positions) {
    if (length(own_) != tokens) own_ = rotary_table(rope_, head_dim_, tokens);
    return own_;
  }
  if (length(shared_) < tokens) shared_ = rotary_table(rope_, head_dim_, tokens);
  return {shared_.cosines.slice(0, 0, tokens), shared_.sines.slice(0, 0, tokens)};
}

}  // namespace kvcal::calib
