#include "formats/internal/json_edit.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace kvcal::formats {
namespace {

using nlohmann::json;

constexpr std::string_view kSpace = " \t\r\n";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

/// Where a member stands in the text.
struct Place {
  std::size_t key = 0;  ///< of its quote
  std::size_t begin = 0, end = 0;
};

struct ObjectPlaces {
  std::map<std::string, Place> members;
  Place last;             ///< of the text; all 0: the object is empty
  std::size_t close = 0;  ///< of its brace
};

std::size_t skip_space(std::string_view text, std::size_t at) {
  return std::min(text.find_first_not_of(kSpace, at), text.size());
}

/// Behind the string whose quote is at `at`.
std::size_t string_end(std::string_view text, std::size_t at) {
  for (++at; at < text.size() && text[at] != '"'; ++at)
    if (text[at] == '\\') ++at;
  return std::min(at + 1, text.size());
}

/// Behind the value that begins at `at`.
std::size_t value_end(std::string_view text, std::size_t at) {
  std::size_t depth = 0;
  while (at < text.size()) {
    const char c = text[at];
    if (c == '"') {
      at = string_end(text, at);
    } else if (c == '{' || c == '[') {
      ++depth;
      ++at;
      continue;
    } else if (c == '}' || c == ']') {
      --depth;
      ++at;
    } else if (depth > 0 && (c == ',' || c == ':' || kSpace.find(c) != std::string_view::npos)) {
      ++at;
      continue;
    } else {
      at = std::min(text.find_first_of(",:]} \t\r\n", at), text.size());  // a number or a word
    }
    if (depth == 0) return at;
  }
  return at;
}

/// Of the object whose brace is at `at`.
ObjectPlaces places_of(std::string_view text, std::size_t at) {
  ObjectPlaces object;
  at = skip_space(text, at + 1);
  while (at < text.size() && text[at] == '"') {
    Place place{.key = at};
    at = string_end(text, at);
    const std::string_view key = text.substr(place.key, at - place.key);
    place.begin = skip_space(text, skip_space(text, at) + 1);  // behind the colon
    place.end = value_end(text, place.begin);
    object.members.emplace(json::parse(key).get<std::string>(), place);
    object.last = place;
    at = skip_space(text, place.end);
    if (at < text.size() && text[at] == ',') at = skip_space(text, at + 1);
  }
  object.close = at;
  return object;
}

/// The brace of the object under `path`.
std::size_t find_object(std::string_view text, const std::vector<std::string>& path) {
  std::size_t at = skip_space(text, text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0);
  for (const std::string& key : path) {
    const ObjectPlaces object = places_of(text, at);
    const auto found = object.members.find(key);
    if (found == object.members.end() || text[found->second.begin] != '{')
      throw base::InvalidInput(base::concat("no object under '", key, "'"));
    at = found->second.begin;
  }
  return at;
}

}  // namespace

std::string with_members(const std::string& text, const std::vector<std::string>& path,
                         const std::vector<JsonMember>& members) {
  const std::size_t open = find_object(text, path);
  const ObjectPlaces object = places_of(text, open);
  const bool empty = object.members.empty();
  std::string space = " ";
  if (!empty) {
    const std::size_t before = text.find_last_not_of(kSpace, object.last.key - 1) + 1;
    space = text.substr(before, object.last.key - before);
    if (space.empty() && object.members.size() == 1) space = " ";
  }
  std::map<std::size_t, std::pair<std::size_t, std::string>> replaced;  // begin -> end, by what
  std::string added;
  for (const JsonMember& member : members) {
    const auto found = object.members.find(member.key);
    if (found == object.members.end()) {
      added += base::concat(empty && added.empty() ? "" : "," + space, json(member.key).dump(), ": ",
                            member.value);
      continue;
    }
    const Place& place = found->second;
    if (json::parse(text.substr(place.begin, place.end - place.begin)) != json::parse(member.value))
      replaced[place.begin] = {place.end, member.value};
  }
  if (!added.empty()) {
    const std::size_t end = empty ? open + 1 : object.last.end;
    replaced[end] = {end, added};
  }
  std::string edited;
  std::size_t done = 0;
  for (const auto& [begin, what] : replaced) {
    edited.append(text, done, begin - done).append(what.second);
    done = what.first;
  }
  return edited.append(text, done);
}

}  // namespace kvcal::formats
