#include "calib/model/parts/rope.h"

#include <ATen/ATen.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>

#include "base/error.h"

namespace kvcal::calib {

using nlohmann::json;

namespace {

const char* type_name(RopeType type) {
  switch (type) {
    case RopeType::linear:
      return "linear";
    case RopeType::dynamic:
      return "dynamic";
    case RopeType::llama3:
      return "llama3";
    case RopeType::standard:
      break;
  }
  return "default";
}

std::optional<RopeType> parse_type(const std::string& name) {
  for (const RopeType type : {RopeType::standard, RopeType::linear, RopeType::dynamic, RopeType::llama3}) {
    if (name == type_name(type)) return type;
  }
  return std::nullopt;
}

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

json RopeConfig::fields() const {
  json used = {{"type", type_name(type)}, {"theta", theta}};
  if (type != RopeType::standard) used["factor"] = factor;
  if (type == RopeType::dynamic || type == RopeType::llama3)
    used["original_max_positions"] = original_max_positions;
  if (type == RopeType::llama3) {
    used["low_freq_factor"] = low_freq_factor;
    used["high_freq_factor"] = high_freq_factor;
  }
  return used;
}

std::string RopeConfig::to_json() const {
  return fields().dump();
}

RopeConfig read_rope_config(const ConfigReader& config, std::int64_t max_positions) {
  RopeConfig rope;
  rope.theta = config.positive("rope_theta", rope.theta);
  // As transformers: rope_scaling, where it says anything, before rope_parameters.
  const bool old_form = !config.is_null("rope_scaling") && !config.object().at("rope_scaling").empty();
  const std::string key = old_form ? "rope_scaling" : "rope_parameters";
  if (config.is_null(key)) return rope;
  const json& scaling = config.object().at(key);
  if (!scaling.is_object()) config.fail(key, "expected an object");

  const ConfigReader fields(scaling, config.file().string() + ": " + key);
  rope.theta = fields.positive("rope_theta", rope.theta);
  const std::string name = fields.text("rope_type", fields.text("type", "default"));
  if (fields.positive("partial_rotary_factor", 1) != 1) {
    fields.fail("partial_rotary_factor", "this architecture rotates whole heads");
  }
  const std::optional<RopeType> type = parse_type(name);
  if (!type) {
    config.fail(key,
                "the kinds known are default, linear, dynamic and llama3; '" + name + "' is not among them");
  }
  rope.type = *type;
  if (rope.type == RopeType::standard) return rope;
  rope.factor = fields.positive("factor");
  if (rope.type == RopeType::dynamic) rope.original_max_positions = max_positions;
  if (rope.type == RopeType::llama3) {
    rope.low_freq_factor = fields.positive("low_freq_factor");
    rope.high_freq_factor = fields.positive("high_freq_factor");
    rope.original_max_positions = fields.integer("original_max_position_embeddings", 1, max_positions);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      fields.fail("high_freq_factor",
                  base::concat("expected more than low_freq_factor, ", rope.low_freq_factor));
    }
  }
  return rope;
}

std::vector<double> inverse_frequencies(const RopeConfig& rope, int head_dim, std::int64_t tokens) {
  double theta = rope.theta;
  if (rope.type == RopeType::dynamic && tokens > rope.original_max_positions) {
    const double stretch =
        rope.factor * static_cast<double>(tokens) / static_cast<double>(rope.original_max_positions) -
        (rope.factor - 1);
    theta *= std::pow(stretch, static_cast<double>(head_dim) / (head_dim - 2));
  }
  std::vector<double> frequencies(static_cast<std::size_t>(head_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(theta, -2.0 * static_cast<double>(i) / head_dim);
    if (rope.type == RopeType::linear) frequencies[i] /= rope.factor;
    if (rope.type == RopeType::llama3) frequencies[i] = llama3_frequency(frequencies[i], rope);
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

RotaryTable RotaryCache::make_table(std::int64_t tokens) const {
  const RotaryTable table = rotary_table(rope_, head_dim_, tokens);
  return {table.cosines.to(device_), table.sines.to(device_)};
}

RotaryTable RotaryCache::table(std::int64_t tokens) {
  const auto length = [](const RotaryTable& table) {
    return table.cosines.defined() ? table.cosines.size(0) : std::int64_t{0};
  };
  const std::scoped_lock lock(mutex_);
  if (rope_.type == RopeType::dynamic && tokens > rope_.original_max_positions) {
    if (length(own_) != tokens) own_ = make_table(tokens);
    return own_;
  }
  if (length(shared_) < tokens) shared_ = make_table(tokens);
  return {shared_.cosines.slice(0, 0, tokens), shared_.sines.slice(0, 0, tokens)};
}

}  // namespace kvcal::calib
