#include "formats/export/check.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "formats/export/export_target.h"
#include "formats/internal/export_check.h"
#include "formats/internal/export_kind.h"
#include "formats/internal/json.h"
#include "formats/internal/kv_scales.h"
#include "formats/json.h"

namespace kvcal::formats {
namespace export_check {
namespace {

using base::concat;
using base::InvalidInput;
using nlohmann::json;
namespace fs = std::filesystem;

// Loaders may keep a scale in bfloat16, whose steps are 1/256 at most.
constexpr double kRounding = 1.0 / 128;

/// The numbers that are so, as words: the number alone, or how many and which is the first. Empty: none.
template <typename Wrong>
std::string wrong_ones(const std::vector<float>& numbers, Wrong&& wrong) {
  const auto first = std::ranges::find_if(numbers, wrong);
  if (first == numbers.end()) return {};
  if (numbers.size() == 1) return concat(*first);
  return concat(std::ranges::count_if(numbers, wrong), " of ", numbers.size(), ", the first is number ",
                first - numbers.begin(), ": ", *first);
}

struct Range {
  double low = 0, high = 0;
};

/// Those that an export can have: keys that RoPE turns may be those measured or the envelope. Throws InvalidInput
/// where there are none.
std::vector<const Magnitudes*> magnitudes_of(const LayerCodebook& layer, const TensorCodebook& tensor) {
  const bool rotated = tensor.tensor.thresholds == ThresholdScope::channel && layer.rope_json != "null";
  std::vector<const Magnitudes*> known;
  if (tensor.magnitudes && !rotated) known.push_back(&tensor.magnitudes->cached);
  if (tensor.magnitudes && rotated) {
    for (const auto* part : {&tensor.magnitudes->rotated, &tensor.magnitudes->envelope})
      if (*part) known.push_back(&**part);
  }
  if (known.empty()) {
    throw InvalidInput(concat("layer ", layer.index, ", ", tensor.tensor.name, "s: the codebook holds no ",
                              "magnitudes to compare scales with, which files have from schema 1.2 on; ",
                              "calibrate anew, or check without a codebook"));
  }
  return known;
}

const MagnitudeGroup& group_of(const Magnitudes& magnitudes, ScaleScope scope) {
  return scope == ScaleScope::tensor ? magnitudes.tensor
         : scope == ScaleScope::head ? magnitudes.head
                                     : magnitudes.channel;
}

/// Of the thresholds that an export of this codebook can have: one a row of the scope.
std::vector<Range> ranges_of(const LayerCodebook& layer, const TensorCodebook& tensor, ScaleScope scope,
                             ScaledType type) {
  std::vector<Range> ranges;
  for (const Magnitudes* magnitudes : magnitudes_of(layer, tensor)) {
    const MagnitudeGroup& group = group_of(*magnitudes, scope);
    ranges.resize(group.quantiles.size() / kMagnitudeLevels.size(),
                  {std::numeric_limits<double>::infinity(), 0});
    for (std::size_t row = 0; row < ranges.size(); ++row) {
      const float* quantiles = &group.quantiles[row * kMagnitudeLevels.size()];
      const double best = group.best[row * kScaledTypes + static_cast<std::size_t>(type)];
      ranges[row].low = std::min({ranges[row].low, double{quantiles[0]}, best});
      ranges[row].high = std::max({ranges[row].high, double{quantiles[kMagnitudeLevels.size() - 1]}, best});
    }
  }
  return ranges;
}

/// Whether a scale's threshold can be that of the codebook. True for those that check_numbers names.
bool is_within(float scale, const Range& range, ScaledType type) {
  const double threshold = double{scale} * largest_code(type);
  if (!(threshold > 0) || !std::isfinite(threshold)) return true;
  return threshold >= range.low * (1 - kRounding) && threshold <= range.high * (1 + kRounding);
}

void find_outside(const Scales& scales, const std::vector<Range>& ranges, ScaledType type,
                  ExportCheck& check) {
  std::size_t outside = 0, first = 0;
  for (std::size_t i = ranges.size(); i-- > 0;) {
    if (is_within(scales.numbers[i], ranges[i], type)) continue;
    ++outside;
    first = i;
  }
  if (outside == 0) return;
  const std::string which =
      ranges.size() == 1 ? "" : concat(outside, " of ", ranges.size(), ", the first is number ", first, ": ");
  add_finding(check, scales.name,
              concat("is of another model or calibration (", which, scales.numbers[first], " x ",
                     largest_code(type), " = ", scales.numbers[first] * largest_code(type),
                     ", the codebook's numbers say ", ranges[first].low, " to ", ranges[first].high, ")"));
}

/// Whether a value stands from `begin` to `end`: in a list, or behind a key.
bool is_value(std::string_view text, std::size_t begin, std::size_t end) {
  constexpr std::string_view kSpace = " \t\r\n";
  const std::size_t before = begin == 0 ? std::string_view::npos : text.find_last_not_of(kSpace, begin - 1);
  const std::size_t after = text.find_first_not_of(kSpace, end);
  constexpr std::string_view kBefore = ":[,", kAfter = ",]}";
  return before != std::string_view::npos && after != std::string_view::npos &&
         kBefore.find(text[before]) != std::string_view::npos &&
         kAfter.find(text[after]) != std::string_view::npos;
}

/// The constants that Python's json takes and writes beyond JSON, in quotes.
std::string with_quoted_constants(std::string_view text) {
  std::string quoted;
  quoted.reserve(text.size());
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto constant = [&](std::string_view word) {
      if (in_string || !text.substr(i).starts_with(word) || !is_value(text, i, i + word.size())) return false;
      quoted.append("\"").append(word).append("\"");
      i += word.size() - 1;
      return true;
    };
    const char c = text[i];
    if ((c == 'N' && constant("NaN")) || (c == 'I' && constant("Infinity")) ||
        (c == '-' && constant("-Infinity")))
      continue;
    if (c == '"') in_string = !in_string;
    quoted += c;
    if (c == '\\' && in_string && i + 1 < text.size()) quoted += text[++i];
  }
  return quoted;
}

}  // namespace

json read_object(const fs::path& path) {
  const std::vector<std::byte> bytes = base::read_file(path, kv_scales::kMaxJsonBytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!is_utf8(text))
    throw InvalidInput(
        concat(path.string(), ": not JSON: not UTF-8 text; name a file that was exported as JSON"));
  json parsed;
  try {
    parsed = parse_json(with_quoted_constants(text), path.string());
  } catch (const InvalidInput& error) {
    throw InvalidInput(concat(error.what(), "; export it anew"));
  }
  if (!parsed.is_object()) throw InvalidInput(concat(path.string(), ": not a JSON object; export it anew"));
  return parsed;
}

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

const json* member(const json* object, const char* key) {
  if (object == nullptr || !object->is_object()) return nullptr;
  const auto found = object->find(key);
  return found == object->end() || found->is_null() ? nullptr : &*found;
}

std::string text_of(const json* value) {
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

bool is_number(const json* value, double number) {
  return value != nullptr && value->is_number() && value->get<double>() == number;
}

bool is_bool(const json* value, bool expected) {
  return value != nullptr && value->is_boolean() && value->get<bool>() == expected;
}

std::optional<int> count_of(const json* value, int limit) {
  if (value == nullptr || !value->is_number_integer()) return std::nullopt;
  if (value->is_number_unsigned() && value->get<std::uint64_t>() > static_cast<std::uint64_t>(limit))
    return std::nullopt;
  const auto number = value->get<std::int64_t>();
  return number < 0 || number > limit ? std::nullopt : std::optional(static_cast<int>(number));
}

std::string counted(std::size_t count, std::string_view one) {
  return concat(count, " ", one, count == 1 ? "" : "s");
}

std::string_view tensor_name(bool value) {
  return value ? "value" : "key";
}

std::string one_line(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string line;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = [&](std::size_t at) {
      return at < text.size() ? static_cast<unsigned>(static_cast<unsigned char>(text[at])) : 0U;
    };
    unsigned control = byte(i);
    std::size_t length = control < 0x20 || control == 0x7f ? 1 : 0;
    if (control == 0xc2 && byte(i + 1) >= 0x80 && byte(i + 1) <= 0x9f) {  // UTF-8 of U+0080 to U+009F
      control = byte(i + 1);
      length = 2;
    } else if (control == 0xe2 && byte(i + 1) == 0x80 && (byte(i + 2) | 1U) == 0xa9) {
      control = 0x2000U + byte(i + 2) - 0x80U;  // U+2028, U+2029
      length = 3;
    }
    if (length == 0) {
      line += text[i];
      continue;
    }
    line += "\\u";
    for (const unsigned shift : {12U, 8U, 4U, 0U}) line += kDigits[(control >> shift) & 0xfU];
    i += length - 1;
  }
  return line;
}

void add_finding(ExportCheck& check, std::string_view name, std::string_view problem) {
  check.problems.push_back({one_line(name), one_line(problem)});
}

void check_numbers(const Scales& scales, ExportCheck& check) {
  const auto report = [&](std::string_view problem, auto&& wrong) {
    const std::string which = wrong_ones(scales.numbers, wrong);
    if (!which.empty()) add_finding(check, scales.name, concat(problem, " (", which, ")"));
  };
  constexpr float kLeast = std::numeric_limits<float>::min();
  report("is not finite", [](float scale) { return !std::isfinite(scale); });
  report("is not above 0", [](float scale) { return scale <= 0 && std::isfinite(scale); });
  report("is subnormal: it has lost digits, and some processors take it for 0",
         [](float scale) { return scale > 0 && scale < kLeast; });
  report("is exactly 1, as where no scale was ever calibrated", [](float scale) { return scale == 1; });
  check.scales += static_cast<std::int64_t>(scales.numbers.size());
  for (const double scale : scales.numbers) {
    if (!std::isfinite(scale)) continue;
    check.smallest = std::min(check.smallest.value_or(scale), scale);
    check.largest = std::max(check.largest.value_or(scale), scale);
  }
}

void compare(const Scales& scales, const Codebook& codebook, ScaleScope scope, ScaledType type,
             ExportCheck& check) {
  const auto layer = std::ranges::find(codebook.layers, scales.layer, &LayerCodebook::index);
  if (layer == codebook.layers.end()) return;
  const TensorCodebook* tensor = layer->find(tensor_name(scales.value));
  if (tensor == nullptr) return;
  const std::vector<Range> ranges = ranges_of(*layer, *tensor, scope, type);
  if (ranges.size() != scales.numbers.size()) {
    add_finding(check, scales.name,
                concat("has ", counted(scales.numbers.size(), "number"), ", the codebook ", ranges.size(),
                       ": of another model"));
    return;
  }
  find_outside(scales, ranges, type, check);
}

}  // namespace export_check

ExportCheck check_export(const std::filesystem::path& path, const Codebook* codebook) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::is_directory(path, error)) return export_check::check_folder(path, codebook);
  constexpr std::string_view kRemedy =
      "name a model's folder with scales, or a scale file of onnx-genai (JSON)";
  if (!export_check::is_there(path))
    throw base::InvalidInput(base::concat(path.string(), ": there is no such file or folder; ", kRemedy));
  if (!fs::is_regular_file(path, error))
    throw base::InvalidInput(base::concat(path.string(), ": neither a folder nor a file; ", kRemedy));
  const std::string kind = export_check::kind_without_scales(export_check::head_of(path));
  if (!kind.empty())
    throw base::InvalidInput(base::concat(path.string(), ": is ", kind, "; ", export_check::kCheckable));
  return export_check::check_scale_file(path, codebook);
}

}  // namespace kvcal::formats
