// apps/terminal.h: how wide and how colourful what is printed may be; text in lines of that width.
// Tables, summaries and plans keep to kColumns everywhere, so that they look the same in a terminal, a log and
// a mail; help takes what a wider terminal has.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace kvcal::apps {

/// What everything printed fits into; only paths and names that the user typed may be longer.
inline constexpr std::size_t kColumns = 60;
/// Lines longer than this are hard to read, however wide the terminal is.
inline constexpr std::size_t kMostColumns = 100;

enum class Stream { kOutput, kError };

/// The columns of the terminal that the stream goes to; nothing where it goes elsewhere.
/// 80 where the terminal does not say.
[[nodiscard]] std::optional<std::size_t> terminal_columns(Stream stream);

/// The width of help: the terminal's, from kColumns to kMostColumns; kColumns where there is no terminal.
[[nodiscard]] std::size_t help_width(Stream stream);

/// Whether the terminal can redraw a line and colour it: false where there is none, and for TERM=dumb.
[[nodiscard]] bool is_capable_terminal(Stream stream);

/// is_capable_terminal(), unless NO_COLOR is set and not empty (no-color.org).
[[nodiscard]] bool may_colour(Stream stream);

/// A heading, and what needs attention (yellow). Unchanged where the stream may not be coloured.
[[nodiscard]] std::string bold(std::string_view text, Stream stream = Stream::kOutput);
[[nodiscard]] std::string attention(std::string_view text, Stream stream = Stream::kOutput);

/// Columns that the text takes: UTF-8 characters, colours not counted.
[[nodiscard]] std::size_t columns_of(std::string_view text);

/// The text in lines of at most `width` columns, each indented by `indent` blanks, broken at blanks and where
/// it has line breaks; a longer word stands alone and whole. No line break at the end.
[[nodiscard]] std::string wrapped(std::string_view text, std::size_t width = kColumns,
                                  std::size_t indent = 0);

/// The same with the first line from the margin: a label and its text, an item of a list.
[[nodiscard]] std::string hanging(std::string_view text, std::size_t width = kColumns,
                                  std::size_t indent = 2);

}  // namespace kvcal::apps
