// formats/internal/json.h: JSON from outside, parsed strictly:
// nlohmann's parser silently keeps the last of two equal keys.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace kvcal::formats {

/// The value. Throws InvalidInput naming `what`: not JSON (and where), a key given twice, nested deeper
/// than kMaxJsonDepth.
[[nodiscard]] nlohmann::json parse_json(std::string_view text, std::string_view what);

/// The text that the parser's exception gives, without its class names and numbers.
[[nodiscard]] std::string json_reason(const std::exception& error);

/// Whether the text is UTF-8 (without it, it can't be written as JSON or as an HDF5 string).
[[nodiscard]] bool is_utf8(std::string_view text);

}  // namespace kvcal::formats
