// base/choices.h: a choice among names: one table for each enum, read for parsing and for printing.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "base/error.h"

namespace kvcal::base {

/// A row of an enum's table: the name that users type and files hold. A table has every value once.
template <typename Enum>
struct Choice {
  const char* name;
  Enum value;
};

/// The value of the name `text`. Throws WrongUsage naming `option` and all names for any other text.
template <typename Enum, std::size_t N>
[[nodiscard]] Enum parse_choice(std::string_view option, std::string_view text,
                                const std::array<Choice<Enum>, N>& table) {
  std::string known;
  for (std::size_t i = 0; i < N; ++i) {
    if (text == table[i].name) return table[i].value;
    known += (i == 0 ? "" : i + 1 == N ? " or " : ", ") + std::string(table[i].name);
  }
  throw WrongUsage(concat(option, " is '", text, "': it may be ", known));
}

/// The name of `value`. Throws WrongUsage for a number that is none of the enum's.
template <typename Enum, std::size_t N>
[[nodiscard]] const char* choice_name(Enum value, const std::array<Choice<Enum>, N>& table) {
  for (const Choice<Enum>& choice : table) {
    if (choice.value == value) return choice.name;
  }
  throw WrongUsage(concat("an option is ", static_cast<int>(value), ", which has no name"));
}

}  // namespace kvcal::base
