#include "calib/model_config.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/sha256.h"

namespace kvcal::calib {

using nlohmann::json;

namespace {

json rope_fields(const RopeConfig& rope) {
  json fields = {{"type", rope.type}, {"theta", rope.theta}};
  if (rope.type != "default") fields["factor"] = rope.factor;
  if (rope.type == "dynamic" || rope.type == "llama3")
    fields["original_max_positions"] = rope.original_max_positions;
  if (rope.type == "llama3") {
    fields["low_freq_factor"] = rope.low_freq_factor;
    fields["high_freq_factor"] = rope.high_freq_factor;
  }
  return fields;
}

}  // namespace

std::string RopeConfig::to_json() const {
  return rope_fields(*this).dump();
}

std::string ModelConfig::sha256() const {
  const json fields = {{"architecture", architecture},
                       {"hidden_size", hidden_size},
                       {"intermediate_size", intermediate_size},
                       {"num_layers", num_layers},
                       {"num_attention_heads", num_attention_heads},
                       {"num_kv_heads", num_kv_heads},
                       {"head_dim", head_dim},
                       {"vocab_size", vocab_size},
                       {"rms_norm_eps", rms_norm_eps},
                       {"activation", activation},
                       {"attention_bias", attention_bias},
                       {"mlp_bias", mlp_bias},
                       {"tied_embeddings", tied_embeddings},
                       {"sliding_window", sliding_window},
                       {"rope", rope_fields(rope)}};
  return base::sha256_hex(fields.dump());
}

ConfigReader::ConfigReader(const json& object, std::filesystem::path file)
    : object_(object), file_(std::move(file)) {
  if (!object_.is_object()) throw base::InvalidInput(base::concat(file_.string(), ": not a JSON object"));
}

bool ConfigReader::has(const std::string& key) const {
  return object_.contains(key);
}

bool ConfigReader::is_null(const std::string& key) const {
  return !has(key) || object_.at(key).is_null();
}

void ConfigReader::fail(const std::string& key, const std::string& reason) const {
  const std::string value = has(key) ? object_.at(key).dump() : "missing";
  throw base::InvalidInput(base::concat(file_.string(), ": '", key, "' is ", value, "; ", reason));
}

std::int64_t ConfigReader::integer(const std::string& key, std::int64_t minimum,
                                   std::int64_t fallback) const {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  if (is_null(key)) {
    if (fallback < 0) fail(key, "expected an integer");
    return fallback;
  }
  const json& value = object_.at(key);
  if (!value.is_number_integer() || value.get<double>() < static_cast<double>(minimum) ||
      value.get<double>() >= static_cast<double>(kLimit)) {
    fail(key, base::concat("expected an integer of at least ", minimum));
  }
  return value.get<std::int64_t>();
}

double ConfigReader::positive(const std::string& key, double fallback) const {
  if (is_null(key)) {
    if (fallback <= 0) fail(key, "expected a positive number");
    return fallback;
  }
  const json& value = object_.at(key);
  if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() <= 0) {
    fail(key, "expected a positive number");
  }
  return value.get<double>();
}

bool ConfigReader::boolean(const std::string& key, bool fallback) const {
  if (is_null(key)) return fallback;
  if (!object_.at(key).is_boolean()) fail(key, "expected true or false");
  return object_.at(key).get<bool>();
}

std::string ConfigReader::text(const std::string& key, const std::string& fallback) const {
  if (is_null(key)) return fallback;
  if (!object_.at(key).is_string()) fail(key, "expected a string");
  return object_.at(key).get<std::string>();
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
  rope.type = fields.text("rope_type", fields.text("type", "default"));
  if (fields.positive("partial_rotary_factor", 1) != 1) {
    fields.fail("partial_rotary_factor", "this architecture rotates whole heads");
  }
  if (rope.type == "default") return rope;
  if (rope.type != "linear" && rope.type != "dynamic" && rope.type != "llama3") {
    config.fail(key, "the kinds known are default, linear, dynamic and llama3; '" + rope.type +
                         "' is not among them");
  }
  rope.factor = fields.positive("factor");
  if (rope.type == "dynamic") {
    rope.original_max_positions = max_positions;
  }
  if (rope.type == "llama3") {
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

}  // namespace kvcal::calib
