#include "formats/json_depth.h"

#include "base/error.h"

namespace kvcal::formats {

void check_json_depth(std::string_view text, std::string_view what) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char letter = text[i];
    if (in_string) {
      if (letter == '\\') ++i;
      in_string = letter != '"';
    } else if (letter == '"') {
      in_string = true;
    } else if (letter == '[' || letter == '{') {
      if (++depth > kMaxJsonDepth)
        throw base::InvalidInput(base::concat(what, ": JSON nested deeper than ", kMaxJsonDepth));
    } else if (letter == ']' || letter == '}') {
      --depth;
    }
  }
}

}  // namespace kvcal::formats
