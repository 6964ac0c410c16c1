#include "formats/internal/json.h"

#include <set>
#include <vector>

#include "base/error.h"
#include "formats/json_depth.h"

namespace kvcal::formats {

std::string json_reason(const std::exception& error) {
  const std::string text = error.what();
  const std::size_t end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

nlohmann::json parse_json(std::string_view text, std::string_view what) {
  using Event = nlohmann::json::parse_event_t;
  check_json_depth(text, what);
  std::vector<std::set<std::string>> keys;  // of each object that is open
  const auto check = [&](int /*depth*/, Event event, nlohmann::json& parsed) {
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw base::InvalidInput(
          base::concat(what, ": the key '", parsed.get<std::string>(), "' is given twice"));
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    throw base::InvalidInput(base::concat(what, ": not JSON: ", json_reason(error)));
  }
}

bool is_utf8(std::string_view text) {
  try {
    (void)nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

}  // namespace kvcal::formats
