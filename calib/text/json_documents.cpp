#include "calib/text/json_documents.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "formats/json.h"

namespace kvcal::calib {
namespace {

using base::concat;
using base::InvalidInput;
using nlohmann::json;

constexpr std::string_view kBlanks = " \t\r\n";
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr std::size_t kMembersShown = 12;
constexpr std::size_t kNameShown = 40;  // bytes of a member's name
// So many documents between two looks at whether the user wants to stop.
constexpr std::int64_t kDocumentsAtATime = 4096;

// Says how a chat becomes text, after what the members of ShareGPT's form are called.
constexpr const char* kRender =
    "render it with the model's chat template, and give that: python3 -c \"import json; from transformers "
    "import "
    "AutoTokenizer; t = AutoTokenizer.from_pretrained('MODEL'); open('chats.txt', 'w').write(''.join("
    "t.apply_chat_template(json.loads(x)['messages'], tokenize=False) for x in open('FILE')))\"";
constexpr const char* kRenderShareGpt =
    "render it with the model's chat template, and give that: python3 -c \"import json; from transformers "
    "import "
    "AutoTokenizer; t = AutoTokenizer.from_pretrained('MODEL'); r = {'human': 'user', 'gpt': 'assistant'}; "
    "open('chats.txt', 'w').write(''.join(t.apply_chat_template([{'role': r.get(m['from'], m['from']), "
    "'content': "
    "m['value']} for m in json.loads(x)['conversations']], tokenize=False) for x in open('FILE')))\"";

std::size_t next_nonblank(std::string_view text, std::size_t from) {
  return std::min(text.find_first_not_of(kBlanks, from), text.size());
}

// Blanks and brackets may stand between; true where `marks` follow each other from `at`.
bool follow(std::string_view text, std::size_t at, std::string_view marks) {
  return std::ranges::all_of(marks, [&](char mark) {
    at = next_nonblank(text, at);
    return at < text.size() && text[at++] == mark;
  });
}

std::string_view line_at(std::string_view text, std::size_t begin) {
  return text.substr(begin, std::min(text.find('\n', begin), text.size()) - begin);
}

bool is_object(std::string_view line) {
  return follow(line, 0, "{") && json::accept(line);
}

// A name from outside, fit for a line of an error.
std::string shown(std::string name) {
  if (name.size() > kNameShown) {
    std::size_t end = kNameShown;
    while (end > 0 && (static_cast<unsigned char>(name[end]) & 0xC0) == 0x80) --end;
    name = name.substr(0, end) + "...";
  }
  std::ranges::replace_if(
      name, [](unsigned char letter) { return letter < 0x20 || letter == 0x7F; }, '?');
  return concat("'", name, "'");
}

std::string members(const json& object) {
  if (object.empty()) return "no members";
  std::string names;
  std::size_t count = 0;
  for (const auto& [name, value] : object.items()) {
    if (count == kMembersShown) return concat(names, " and ", object.size() - count, " more");
    names += concat(count++ == 0 ? "" : ", ", shown(name));
  }
  return names;
}

// The member that most likely holds the text: the longest string; empty where there is none.
std::string longest_text(const json& object) {
  std::string best;
  std::size_t length = 0;
  for (const auto& [name, value] : object.items()) {
    if (!value.is_string() || value.get_ref<const std::string&>().size() <= length) continue;
    best = name;
    length = value.get_ref<const std::string&>().size();
  }
  return best;
}

std::string remedy(const json& object) {
  const std::string best = longest_text(object);
  if (best.empty()) return "none of them is a text";
  const bool plain = std::ranges::all_of(best, [](unsigned char letter) {
    return std::isalnum(letter) != 0 || letter == '_' || letter == '-' || letter == '.';
  });
  return plain ? concat("name the one that holds the text, such as --text-field ", best)
               : "name the one that holds the text with --text-field";
}

/// Takes objects one by one.
class Collector {
 public:
  Collector(const std::string& what, const std::string& field, base::Progress& progress)
      : what_(what), field_(field), progress_(progress) {}

  /// Room for so many bytes of text, so that it does not grow by copies of itself; what is not used takes no memory.
  void reserve(std::size_t bytes) { found_.text.reserve(bytes); }

  void add(std::string_view object_text, std::int64_t line) {
    if (found_.documents % kDocumentsAtATime == 0) progress_.check_interrupted();
    const std::string place = concat(what_, ": line ", line);
    const json object = formats::parse_json(object_text, place);
    if (!object.is_object())
      throw InvalidInput(
          concat(place, ": ", object.type_name(), ", not an object; expected {\"", field_, "\": \"...\"}"));
    const std::string& text = text_of(object, place);
    if (found_.documents++ > 0) found_.text += "\n\n";
    found_.text += text;
  }

  [[nodiscard]] JsonDocuments take() { return std::move(found_); }

 private:
  const std::string& text_of(const json& object, const std::string& place) const {
    const auto member = object.find(field_);
    if (member != object.end() && member->is_string()) return member->get_ref<const std::string&>();
    for (const auto& [name, render] :
         {std::pair{"messages", kRender}, std::pair{"conversations", kRenderShareGpt}}) {
      if (object.contains(name))
        throw InvalidInput(concat(place, ": a chat (", name, "), not a text; ", render));
    }
    if (member == object.end()) {
      throw InvalidInput(concat(place, ": no member ", shown(field_), "; it has ", members(object),
                                object.empty() ? "" : concat(": ", remedy(object))));
    }
    throw InvalidInput(concat(place, ": the member ", shown(field_), " is of type ", member->type_name(),
                              ", not a string; of ", members(object), ": ", remedy(object)));
  }

  const std::string& what_;
  const std::string& field_;
  base::Progress& progress_;
  JsonDocuments found_;
};

void collect_lines(std::string_view text, Collector& collector) {
  std::int64_t number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::string_view line = line_at(text, begin);
    ++number;
    if (next_nonblank(line, 0) < line.size()) collector.add(line, number);
    begin += line.size() + 1;
  }
}

// Where the object that begins at `begin` ends: one past its last brace, or the end of the text.
std::size_t end_of_object(std::string_view text, std::size_t begin) {
  std::int64_t depth = 0;
  bool in_string = false;
  for (std::size_t i = begin; i < text.size(); ++i) {
    const char letter = text[i];
    if (in_string) {
      if (letter == '\\') ++i;
      in_string = letter != '"';
    } else if (letter == '"') {
      in_string = true;
    } else if (letter == '{') {
      ++depth;
    } else if (letter == '}' && --depth == 0) {
      return i + 1;
    }
  }
  return text.size();
}

// Object by object, so that memory is one document's and not the array's.
void collect_array(std::string_view text, const std::string& what, Collector& collector) {
  std::int64_t line = 1;
  std::size_t counted = 0;
  const auto line_of = [&](std::size_t at) {
    line += std::count(text.begin() + static_cast<std::ptrdiff_t>(counted),
                       text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    counted = at;
    return line;
  };
  const auto expect = [&](std::size_t at, const char* expected) {
    throw InvalidInput(concat(what, ": line ", line_of(at), ": not JSON: expected ", expected,
                              at < text.size() ? "" : ", and the file ends"));
  };
  std::size_t at = next_nonblank(text, 0);  // the bracket
  do {
    at = next_nonblank(text, at + 1);
    if (at == text.size() || text[at] != '{') expect(at, "an object");
    const std::size_t end = end_of_object(text, at);
    collector.add(text.substr(at, end - at), line_of(at));
    at = next_nonblank(text, end);
    if (at == text.size() || (text[at] != ',' && text[at] != ']')) expect(at, "a comma or the array's end");
  } while (text[at] == ',');
  at = next_nonblank(text, at + 1);
  if (at < text.size()) expect(at, "nothing after the array");
}

bool is_jsonl(std::string_view text) {
  const std::size_t begin = next_nonblank(text, 0);
  if (begin == text.size() || text[begin] != '{') return false;
  const std::string_view first = line_at(text, begin);
  if (is_object(first)) return true;
  return follow(first, 0, "{\"") && is_object(line_at(text, next_nonblank(text, begin + first.size())));
}

std::string_view without_mark(std::string_view text) {
  return text.starts_with(kByteOrderMark) ? text.substr(kByteOrderMark.size()) : text;
}

}  // namespace

std::optional<JsonDocuments> json_documents(std::string_view text, const std::string& what,
                                            const std::string& field, base::Progress& progress) {
  text = without_mark(text);
  const bool array = follow(text, 0, "[{\"");
  if (!array && !is_jsonl(text)) return std::nullopt;
  Collector collector(what, field, progress);
  collector.reserve(text.size());  // a text is shorter than the JSON that holds it
  if (array) {
    collect_array(text, what, collector);
  } else {
    collect_lines(text, collector);
  }
  return collector.take();
}

bool begins_like_json(std::string_view text) {
  return follow(without_mark(text), 0, "{\"");
}

}  // namespace kvcal::calib
