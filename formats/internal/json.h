// formats/internal/json.h: what readers and writers of JSON share beside formats/json.h.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace kvcal::formats {

/// The text that the parser's exception gives, without its class names and numbers.
[[nodiscard]] std::string json_reason(const std::exception& error);

/// Whether the text is UTF-8 (without it, it can't be written as JSON or as an HDF5 string).
[[nodiscard]] bool is_utf8(std::string_view text);

}  // namespace kvcal::formats
