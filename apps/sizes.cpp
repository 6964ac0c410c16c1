#include "apps/sizes.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <system_error>

#include "base/error.h"

namespace kvcal::apps {
namespace {

using base::concat;
using base::WrongUsage;

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlanks = " \t";
  const std::size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

// The power of 1024 that a suffix stands for; -1 for one that is not known.
int power_of_suffix(std::string suffix) {
  for (char& letter : suffix) letter = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  if (suffix.empty() || suffix == "B") return 0;
  constexpr std::string_view kLetters = "KMGT";
  const std::size_t power = kLetters.find(suffix.front());
  const std::string rest = suffix.substr(1);
  if (power == std::string_view::npos || !(rest.empty() || rest == "B" || rest == "IB")) return -1;
  return static_cast<int>(power) + 1;
}

// from_chars reads no leading '+', which people may type; what it leaves unread is returned.
template <typename Number>
std::string_view read_number(std::string_view text, Number& value, bool& valid) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  valid = error == std::errc{};
  return text.substr(static_cast<std::size_t>(end - text.data()));
}

}  // namespace

std::int64_t parse_size(std::string_view text, std::string_view option) {
  const std::string_view typed = trimmed(text);
  bool valid = false;
  // Plain integers are read as such: a double has 53 bits only.
  std::int64_t whole = 0;
  const std::string_view integer_rest = read_number(typed, whole, valid);
  if (valid && integer_rest.empty() && whole >= 0) return whole;

  double value = 0;
  std::string_view rest = read_number(typed, value, valid);
  rest = trimmed(rest);
  const int power = power_of_suffix(std::string(rest));
  const bool is_fraction_of_one = power == 0 && value != std::floor(value);
  if (!valid || power < 0 || !std::isfinite(value) || std::signbit(value) || is_fraction_of_one) {
    throw WrongUsage(concat(option, " is '", text, "': give a size such as 512, 8K, 1M or 80GB"));
  }
  const double size = std::floor(std::ldexp(value, 10 * power));
  if (size >= std::ldexp(1.0, 63))
    throw WrongUsage(concat(option, " is '", text, "': larger than any size there is"));
  return static_cast<std::int64_t>(size);
}

std::int64_t parse_count(std::string_view text, std::string_view option, std::int64_t least,
                         std::int64_t most) {
  const std::int64_t value = parse_size(text, option);
  if (value < least) throw WrongUsage(concat(option, " is ", trimmed(text), ": the least is ", least));
  if (value > most) throw WrongUsage(concat(option, " is ", trimmed(text), ": the most is ", most));
  return value;
}

std::int64_t parse_memory(std::string_view text, std::string_view option) {
  const std::int64_t bytes = parse_size(text, option);
  if (bytes >= std::int64_t{1} << 20) return bytes;
  const std::string_view typed = trimmed(text);
  const bool bare = bytes > 0 && typed.find_first_not_of("0123456789") == std::string_view::npos;
  throw WrongUsage(concat(option, " is ", typed, ", that is ", format_bytes(bytes), ": ",
                          bare ? concat("did you mean ", bytes, "GB?") : "give an amount such as 8GB"));
}

std::int64_t parse_integer(std::string_view text, std::string_view option) {
  const std::string_view typed = trimmed(text);
  std::int64_t value = 0;
  bool valid = false;
  const std::string_view rest = read_number(typed, value, valid);
  if (!valid || !rest.empty()) throw WrongUsage(concat(option, " is '", text, "': give a whole number"));
  return value;
}

double parse_number(std::string_view text, std::string_view option) {
  const std::string_view typed = trimmed(text);
  double value = 0;
  bool valid = false;
  const std::string_view rest = read_number(typed, value, valid);
  if (!valid || !rest.empty() || !std::isfinite(value)) {
    throw WrongUsage(concat(option, " is '", text, "': give a number such as 0.01"));
  }
  return value;
}

std::vector<std::string> split_list(const std::vector<std::string>& values, std::string_view option) {
  std::vector<std::string> parts;
  for (const std::string& value : values) {
    std::size_t begin = 0;
    while (true) {
      const std::size_t comma = value.find(',', begin);
      const std::string_view part = trimmed(std::string_view(value).substr(begin, comma - begin));
      if (part.empty())
        throw WrongUsage(concat(option, " is '", value, "': an empty element; give a list such as 2,3,4"));
      parts.emplace_back(part);
      if (comma == std::string::npos) break;
      begin = comma + 1;
    }
  }
  return parts;
}

std::string plural(std::int64_t count, std::string_view noun) {
  return concat(format_count(count), " ", noun, count == 1 ? "" : "s");
}

std::string fixed(double value, int digits) {
  if (!std::isfinite(value)) return "-";
  std::array<char, 400> buffer{};  // 1e308 has 309 digits
  std::snprintf(buffer.data(), buffer.size(), "%.*f", digits, value);
  return buffer.data();
}

std::string format_number(double value, int significant_digits) {
  std::array<char, 64> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.*g", significant_digits, value);
  return buffer.data();
}

std::string format_bytes(std::int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  // 999.5 and not 1024: %.3g would print 1e+03.
  while (std::abs(value) >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  if (std::abs(value) >= 999.5) return concat(format_count(std::llround(value)), " ", kUnits[unit]);
  return concat(format_number(value, 3), " ", kUnits[unit]);
}

std::string format_duration(double seconds) {
  if (!(seconds >= 0) || seconds > 1e12) return "?";
  if (seconds < 9.995) return concat(format_number(seconds, seconds < 1 ? 2 : 3), " s");
  const std::int64_t whole = std::llround(seconds);
  if (whole < 60) return concat(whole, " s");
  if (whole < 3600) return concat(whole / 60, " min ", whole % 60, " s");
  if (whole < 86400) return concat(whole / 3600, " h ", whole % 3600 / 60, " min");
  return concat(whole / 86400, " d ", whole % 86400 / 3600, " h");
}

std::string format_count(std::int64_t count) {
  std::string digits = std::to_string(count);
  const std::size_t first = count < 0 ? 1 : 0;
  for (std::size_t at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, 1, ',');
  }
  return digits;
}

}  // namespace kvcal::apps
