#include "formats/json_text.h"

#include "base/error.h"
#include "formats/internal/json.h"

namespace kvcal::formats {

// nlohmann::json keeps its objects in a std::map: dump() gives the keys in byte order.

std::string canonical_json(std::string_view text, std::string_view what) {
  return parse_json(text, what).dump();
}

std::string canonical_json_fields(std::string_view text, std::span<const std::string> keys,
                                  std::string_view what) {
  const nlohmann::json whole = parse_json(text, what);
  if (!whole.is_object())
    throw base::InvalidInput(base::concat(what, ": expected a JSON object, found ", whole.type_name()));
  nlohmann::json kept = nlohmann::json::object();
  for (const std::string& key : keys) {
    if (const auto found = whole.find(key); found != whole.end()) kept[key] = *found;
  }
  return kept.dump();
}

}  // namespace kvcal::formats
