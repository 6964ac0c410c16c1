// formats/internal/json_edit.h: members set in a JSON text, all of whose other bytes stay as they are.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvcal::formats {

struct JsonMember {
  std::string key;
  std::string value;  ///< JSON
};

/// Sets members of the object that lies under the keys of `path`: a value of the same meaning stays, another is
/// replaced where it stands, and a new one goes to the object's end, spaced as the last one there.
/// `text` is an object that parse_json() took. Throws InvalidInput where `path` leads to no object.
[[nodiscard]] std::string with_members(const std::string& text, const std::vector<std::string>& path,
                                       const std::vector<JsonMember>& members);

}  // namespace kvcal::formats
