#include "calib/model/model_config.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/sha256.h"

namespace kvcal::calib {

using nlohmann::json;

std::string ModelConfig::sha256() const {
  return base::sha256_hex(fingerprint_json);
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

}  // namespace kvcal::calib
