// formats/internal/shell_word.h: paths in the commands that an export prints, quoted so that they can be copied.
#pragma once

#include <string>
#include <string_view>

namespace kvcal::formats {

/// The text as one word of a POSIX shell: as it is where nothing in it has a meaning there, else in single quotes.
[[nodiscard]] std::string shell_word(std::string_view text);

/// The text as a literal of Python, in double quotes. Bytes above ASCII stay as they are.
[[nodiscard]] std::string python_string(std::string_view text);

}  // namespace kvcal::formats
