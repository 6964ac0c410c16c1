// formats/internal/export_check.h: what the checks of an exported folder and of a scale file share
// (formats/export/check.h).
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/export/check.h"
#include "formats/export/export_target.h"

namespace kvcal::formats::export_check {

inline constexpr int kMaxLayers = 10'000;  // as in a codebook

/// A model's folder; a scale file of onnx-genai. Both throw as check_export does; the codebook may be null.
[[nodiscard]] ExportCheck check_folder(const std::filesystem::path& folder, const Codebook* codebook);
[[nodiscard]] ExportCheck check_scale_file(const std::filesystem::path& path, const Codebook* codebook);

/// False for a link to nothing.
[[nodiscard]] bool is_there(const std::filesystem::path& path);

/// Python's NaN, Infinity and -Infinity, which JSON has not, are strings of these names. Throws InvalidInput naming the
/// file: not UTF-8, not JSON, not an object.
[[nodiscard]] nlohmann::json read_object(const std::filesystem::path& path);

/// The value under a key. Null: the object lacks it, it is null, or this is no object.
[[nodiscard]] const nlohmann::json* member(const nlohmann::json* object, const char* key);

/// Empty: no text.
[[nodiscard]] std::string text_of(const nlohmann::json* value);

[[nodiscard]] bool is_number(const nlohmann::json* value, double number);
[[nodiscard]] bool is_bool(const nlohmann::json* value, bool expected);

/// A whole number from 0 to `limit`; empty: something else.
[[nodiscard]] std::optional<int> count_of(const nlohmann::json* value, int limit);

/// "1 row", "2 rows".
[[nodiscard]] std::string counted(std::size_t count, std::string_view one);

/// "value" or "key", as a codebook names its tensors.
[[nodiscard]] std::string_view tensor_name(bool value);

/// Control characters (of ASCII and U+0080 to U+009F) and the separators U+2028 and U+2029 as \u000a; the rest as it
/// is. Names in files may hold them.
[[nodiscard]] std::string one_line(std::string_view text);

/// Both on one line each.
void add_finding(ExportCheck& check, std::string_view name, std::string_view problem);

/// The scales of one tensor of one layer.
struct Scales {
  std::string name;
  int layer = 0;
  bool value = false;  ///< of values; else of keys
  std::vector<float> numbers;
};

/// Counts the numbers and finds those that cannot be scales.
void check_numbers(const Scales& scales, ExportCheck& check);

/// Finds numbers that cannot be of this codebook. Layers and tensors that it lacks are passed over. Throws
/// InvalidInput for a codebook without magnitudes.
void compare(const Scales& scales, const Codebook& codebook, ScaleScope scope, ScaledType type,
             ExportCheck& check);

}  // namespace kvcal::formats::export_check
