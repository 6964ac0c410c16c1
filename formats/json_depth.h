// formats/json_depth.h: a limit on how deeply JSON from outside may nest, checked before it is parsed.
#pragma once

#include <string_view>

namespace kvcal::formats {

/// Far more than any file that we read needs, and far less than what a parser's stack bears.
inline constexpr int kMaxJsonDepth = 64;

/// Throws InvalidInput naming `what` where arrays and objects are nested deeper than kMaxJsonDepth. Says
/// nothing of whether the text is JSON otherwise.
void check_json_depth(std::string_view text, std::string_view what);

}  // namespace kvcal::formats
