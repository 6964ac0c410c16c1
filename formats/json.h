// formats/json.h: the one door for JSON from outside: strict, with limits on depth, size and the number of values.
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

namespace kvcal::formats {

/// What a text may cost: memory and time grow with its bytes and its values, the stack with its depth.
struct JsonLimits {
  int depth = 64;  ///< of arrays and objects in each other: far more than any file needs
  std::size_t bytes = std::size_t{64} << 20;  ///< of the text
  std::size_t values = 4'000'000;             ///< objects, arrays, texts, numbers: each takes 100 bytes or so
};

/// The value. Throws InvalidInput naming `what`: beyond a limit; not JSON, or a number beyond float64 (and where); a key
/// given twice in an object (parsers keep the first or the last).
[[nodiscard]] nlohmann::json parse_json(std::string_view text, std::string_view what,
                                        const JsonLimits& limits = {});

/// The same, keys in the order in which they were given.
[[nodiscard]] nlohmann::ordered_json parse_ordered_json(std::string_view text, std::string_view what,
                                                        const JsonLimits& limits = {});

/// Of a whole file. Throws SystemError, too.
[[nodiscard]] nlohmann::json read_json_file(const std::filesystem::path& path, const JsonLimits& limits = {});

}  // namespace kvcal::formats
