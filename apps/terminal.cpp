#include "apps/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace kvcal::apps {
namespace {

int descriptor_of(Stream stream) {
  return stream == Stream::kOutput ? STDOUT_FILENO : STDERR_FILENO;
}

std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view{} : std::string_view{value};
}

// ECMA-48, 8.3.117 (SGR)
std::string coloured(std::string_view text, const char* code, Stream stream) {
  if (text.empty() || !may_colour(stream)) return std::string(text);
  return std::string("\x1b[").append(code).append("m").append(text).append("\x1b[0m");
}

std::string filled(std::string_view text, std::size_t width, std::size_t first_indent, std::size_t indent) {
  std::string result;
  while (true) {
    const std::string_view line = text.substr(0, text.find('\n'));
    result.append(result.empty() ? first_indent : indent, ' ');
    std::size_t column = result.size() - (result.rfind('\n') + 1), at = 0;
    bool is_first_word = true;
    while ((at = line.find_first_not_of(' ', at)) != std::string_view::npos) {
      const std::string_view word = line.substr(at, line.find(' ', at) - at);
      at += word.size();
      if (!is_first_word && column + 1 + columns_of(word) > width) {
        result.append("\n").append(indent, ' ');
        column = indent;
        is_first_word = true;
      }
      if (!is_first_word) result += ' ';
      column += columns_of(word) + (is_first_word ? 0 : 1);
      result += word;
      is_first_word = false;
    }
    if (is_first_word) result.erase(result.find_last_not_of(' ') + 1);  // an empty line keeps no indent
    if (line.size() == text.size()) return result;
    result += '\n';
    text.remove_prefix(line.size() + 1);
  }
}

}  // namespace

std::optional<std::size_t> terminal_columns(Stream stream) {
  constexpr std::size_t kUsual = 80;
  const int descriptor = descriptor_of(stream);
  if (::isatty(descriptor) != 1) return std::nullopt;
  winsize size{};
  return ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kUsual;
}

std::size_t help_width(Stream stream) {
  return std::clamp(terminal_columns(stream).value_or(kColumns), kColumns, kMostColumns);
}

bool is_capable_terminal(Stream stream) {
  return ::isatty(descriptor_of(stream)) == 1 && environment("TERM") != "dumb";
}

bool may_colour(Stream stream) {
  return is_capable_terminal(stream) && environment("NO_COLOR").empty();
}

std::string bold(std::string_view text, Stream stream) {
  return coloured(text, "1", stream);
}

std::string attention(std::string_view text, Stream stream) {
  return coloured(text, "33", stream);
}

std::size_t columns_of(std::string_view text) {
  std::size_t columns = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\x1b') {
      i = std::min(text.find('m', i), text.size());
      continue;
    }
    const bool continues = (static_cast<unsigned char>(text[i]) & 0xC0U) == 0x80U;  // of a UTF-8 character
    if (!continues) ++columns;
  }
  return columns;
}

std::string wrapped(std::string_view text, std::size_t width, std::size_t indent) {
  return filled(text, width, indent, indent);
}

std::string hanging(std::string_view text, std::size_t width, std::size_t indent) {
  return filled(text, width, 0, indent);
}

}  // namespace kvcal::apps
