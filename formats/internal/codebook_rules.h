// formats/internal/codebook_rules.h: what makes a codebook valid, and the names in its file:
// shared by writer and reader.
#pragma once

#include <string>
#include <string_view>

#include "formats/codebook.h"

namespace kvcal::formats {

inline constexpr std::string_view kCodebookFormat = "kvcal-codebook";

/// What follows a tensor's path in those of its statistics for the ablation.
inline constexpr const char* kWithSinks = "/with_sinks";
inline constexpr const char* kRotated = "_rope";

/// "/layers/0000"
[[nodiscard]] std::string layer_path(int index);

/// Sizes, order and values, and that texts are text. Throws InvalidInput naming `file`, the path in it and
/// the rule. Expects layers, outlier sets and datatypes sorted.
void validate_codebook(const Codebook& codebook, const std::string& file);

}  // namespace kvcal::formats
