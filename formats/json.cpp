#include "formats/json.h"

#include <string>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "formats/internal/json.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;

/// Makes the value of the parser's events. nlohmann's own maker looks through an object again for each of its members
/// where it has a filter, and keeps the last of two equal keys where it has none.
template <typename Json>
class Builder {
 public:
  Builder(std::string_view what, const JsonLimits& limits) : what_(what), limits_(limits) {}

  [[nodiscard]] Json take() { return std::move(root_); }

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(std::int64_t value) { return add(value); }
  bool number_unsigned(std::uint64_t value) { return add(value); }
  bool number_float(double value, const std::string& /*text*/) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  [[noreturn]] bool binary(std::vector<std::uint8_t>& /*value*/) { fail("binary data"); }

  bool start_object(std::size_t /*elements*/) { return open(Json::object()); }
  bool start_array(std::size_t /*elements*/) { return open(Json::array()); }
  bool end_object() {
    keys_.pop_back();
    return end_array();
  }
  bool end_array() {
    open_.pop_back();
    return true;
  }

  bool key(std::string& name) {
    if (!keys_.back().insert(name).second) fail(concat("the key '", name, "' is given twice"));
    key_ = std::move(name);
    return true;
  }

  [[noreturn]] bool parse_error(std::size_t /*at*/, const std::string& /*token*/,
                                const nlohmann::json::exception& error) {
    fail(concat("not JSON: ", json_reason(error)));
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    throw InvalidInput(concat(what_, ": ", problem));
  }

  bool open(Json&& value) {
    if (open_.size() == static_cast<std::size_t>(limits_.depth))
      fail(concat("JSON nested deeper than ", limits_.depth));
    const bool object = value.is_object();
    open_.push_back(place(std::move(value)));
    if (object) keys_.emplace_back();
    return true;
  }

  template <typename Value>
  bool add(Value&& value) {
    place(Json(std::forward<Value>(value)));
    return true;
  }

  // Into what is open. Only the innermost grows, so that what is open around it stays where it is.
  Json* place(Json&& value) {
    if (++values_ > limits_.values) fail(concat("more than ", limits_.values, " values"));
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return put(parent.template get_ref<typename Json::object_t&>(), std::move(value));
  }

  Json* put(nlohmann::json::object_t& object, Json&& value) {
    return &object.emplace(std::move(key_), std::move(value)).first->second;
  }
  // Its own emplace() looks for the key again, among all.
  Json* put(nlohmann::ordered_json::object_t& object, Json&& value) {
    using List = nlohmann::ordered_json::object_t::Container;
    return &static_cast<List&>(object).emplace_back(std::move(key_), std::move(value)).second;
  }

  std::string_view what_;
  const JsonLimits& limits_;
  Json root_;
  std::vector<Json*> open_;
  std::vector<std::unordered_set<std::string>> keys_;  // of each object that is open
  std::string key_;
  std::size_t values_ = 0;
};

template <typename Json>
Json parse(std::string_view text, std::string_view what, const JsonLimits& limits) {
  if (text.size() > limits.bytes)
    throw InvalidInput(
        concat(what, ": ", text.size(), " bytes of JSON; expected ", limits.bytes, " at most"));
  Builder<Json> builder(what, limits);
  Json::sax_parse(text, &builder);
  return builder.take();
}

}  // namespace

nlohmann::json parse_json(std::string_view text, std::string_view what, const JsonLimits& limits) {
  return parse<nlohmann::json>(text, what, limits);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, std::string_view what,
                                          const JsonLimits& limits) {
  return parse<nlohmann::ordered_json>(text, what, limits);
}

nlohmann::json read_json_file(const std::filesystem::path& path, const JsonLimits& limits) {
  const std::vector<std::byte> bytes = base::read_file(path, limits.bytes);
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string(), limits);
}

}  // namespace kvcal::formats
