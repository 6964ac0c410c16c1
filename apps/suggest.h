// apps/suggest.h: what a mistyped word was meant to be.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvcal::apps {

/// The least number of letters inserted, left out, replaced, or swapped with their neighbour, that turns one
/// word into the other (optimal string alignment).
[[nodiscard]] int edit_distance(std::string_view left, std::string_view right);

/// The candidate nearest to `word`, upper and lower case and '_' and '-' being the same; one that `word`
/// begins counts as near. The first of equals. Empty where none is near: more than a third of the letters (at
/// least 2) would have to change.
[[nodiscard]] std::optional<std::string> nearest(std::string_view word,
                                                 const std::vector<std::string>& candidates);

/// An option of another tool (KVQuant's scripts, mostly) and what does the same here:
/// "use --outliers 0.01 ...". Without dashes, '_' and '-' being the same.
[[nodiscard]] std::optional<std::string> foreign_option(std::string_view name);

}  // namespace kvcal::apps
