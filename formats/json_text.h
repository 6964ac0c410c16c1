// formats/json_text.h: JSON as text in one canonical form, so that equal values have equal fingerprints.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace kvcal::formats {

/// The same value with the keys of every object in byte order, no white space, UTF-8 unescaped, and
/// floating-point numbers in the shortest form that reads back as the same double. An integer and a float of
/// the same value stay different (1, 1.0). Throws InvalidInput naming `what`: not JSON, a key given twice,
/// nested deeper than 64.
[[nodiscard]] std::string canonical_json(std::string_view text, std::string_view what);

/// The same for an object of which only some keys are kept; one that is absent is left out.
/// Throws InvalidInput also where the text is not an object.
[[nodiscard]] std::string canonical_json_fields(std::string_view text, std::span<const std::string> keys,
                                                std::string_view what);

}  // namespace kvcal::formats
