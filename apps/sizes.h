// apps/sizes.h: numbers as people type and read them: 512, 8K, 1M, 80GB in; 1.5 GiB, 2 min 5 s out.
// K, M, G, T are powers of 1024.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvcal::apps {

/// "512", "8K", "8k", "1.5G", "80GB", "80GiB", "1024B" as a whole number, rounded down. `option` names what
/// was typed in the message. Throws base::WrongUsage for anything else, for a negative value and for one that
/// does not fit.
[[nodiscard]] std::int64_t parse_size(std::string_view text, std::string_view option);

/// A size from `least` to `most`. Throws base::WrongUsage saying both.
[[nodiscard]] std::int64_t parse_count(std::string_view text, std::string_view option, std::int64_t least,
                                       std::int64_t most);

/// An amount of memory. Throws base::WrongUsage below a mebibyte, which is a forgotten unit,
/// saying what may have been meant.
[[nodiscard]] std::int64_t parse_memory(std::string_view text, std::string_view option);

/// A whole number, which may be negative. Throws base::WrongUsage.
[[nodiscard]] std::int64_t parse_integer(std::string_view text, std::string_view option);

/// A finite number. Throws base::WrongUsage.
[[nodiscard]] double parse_number(std::string_view text, std::string_view option);

/// The parts between commas of every element, blanks cut off: {"2, 3", "4"} gives 2 3 4. Throws
/// base::WrongUsage for an empty part.
[[nodiscard]] std::vector<std::string> split_list(const std::vector<std::string>& values,
                                                  std::string_view option);

/// "0 B", "512 B", "1.5 KiB", "20 MiB", "3.27 GiB": three significant digits.
[[nodiscard]] std::string format_bytes(std::int64_t bytes);

/// "0.42 s", "12 s", "2 min 5 s", "3 h 20 min", "2 d 4 h".
[[nodiscard]] std::string format_duration(double seconds);

/// 1234567 as "1,234,567".
[[nodiscard]] std::string format_count(std::int64_t count);

/// "1 layer", "1,234 layers".
[[nodiscard]] std::string plural(std::int64_t count, std::string_view noun);

/// Like "%.3f" with so many digits behind the point; "-" for what is not finite.
[[nodiscard]] std::string fixed(double value, int digits);

/// Like "%.4g".
[[nodiscard]] std::string format_number(double value, int significant_digits = 4);

}  // namespace kvcal::apps
