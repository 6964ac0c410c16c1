#define PCRE2_CODE_UNIT_WIDTH 8
#include "formats/tokenizer/internal/tokenizer_regex_class.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <utility>

#include "base/error.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

constexpr char32_t kLastCodePoint = 0x10FFFF;
constexpr int kMostNesting = 64;

std::string escaped(char32_t code_point) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string digits;
  do {
    digits.insert(digits.begin(), kDigits[code_point % 16]);
    code_point /= 16;
  } while (code_point != 0);
  return "\\x{" + digits + "}";
}

void append_range(std::string& out, const CodePointRange& range) {
  out += escaped(range.first);
  if (range.last != range.first) out += "-" + escaped(range.last);
}

/// Whether PCRE2's categories and ours differ by no more than recent assignments to categories of the mask.
bool is_writable(CategoryMask mask) {
  const bool nonspacing = (mask & mask_of(GeneralCategory::Mn)) != 0;
  const bool spacing = (mask & mask_of(GeneralCategory::Mc)) != 0;  // U+1171E went from the one to the other
  return (mask & mask_of(GeneralCategory::Cn)) == 0 && nonspacing == spacing;
}

std::string write_categories(CategoryMask mask) {
  static constexpr std::array<std::string_view, 7> kGroups = {"L", "M", "N", "P", "S", "Z", "C"};
  static constexpr std::string_view kNames = "CnLuLlLtLmLoMnMcMeNdNlNoPcPdPsPePiPfPoSmScSkSoZsZlZpCcCfCsCo";
  std::string out;
  CategoryMask left = mask;
  for (const std::string_view group : kGroups) {
    const CategoryMask of_group = category_mask(group);
    if ((mask & of_group) != of_group) continue;
    out += "\\p{" + std::string(group) + "}";
    left &= ~of_group;
  }
  for (unsigned i = 0; i < kNames.size() / 2; ++i) {
    if ((left >> i & 1U) != 0) out += "\\p{" + std::string(kNames.substr(2 * i, 2)) + "}";
  }
  for (const RecentRange& recent : recent_ranges()) {
    if ((mask_of(recent.category) & mask) != 0) append_range(out, {recent.first, recent.last});
  }
  return out;
}

std::string folded_name(std::string_view name) {
  std::string folded;
  for (const char c : name) {
    if (c != ' ' && c != '_' && c != '-')
      folded += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return folded;
}

CategoryMask mask_of_name(const std::string& folded) {
  struct Long {
    std::string_view name, category;
  };
  static constexpr Long kLong[] = {{"letter", "L"},
                                   {"casedletter", "LC"},
                                   {"uppercaseletter", "Lu"},
                                   {"lowercaseletter", "Ll"},
                                   {"titlecaseletter", "Lt"},
                                   {"modifierletter", "Lm"},
                                   {"otherletter", "Lo"},
                                   {"mark", "M"},
                                   {"combiningmark", "M"},
                                   {"nonspacingmark", "Mn"},
                                   {"spacingmark", "Mc"},
                                   {"enclosingmark", "Me"},
                                   {"number", "N"},
                                   {"decimalnumber", "Nd"},
                                   {"letternumber", "Nl"},
                                   {"othernumber", "No"},
                                   {"punctuation", "P"},
                                   {"punct", "P"},
                                   {"connectorpunctuation", "Pc"},
                                   {"dashpunctuation", "Pd"},
                                   {"openpunctuation", "Ps"},
                                   {"closepunctuation", "Pe"},
                                   {"initialpunctuation", "Pi"},
                                   {"finalpunctuation", "Pf"},
                                   {"otherpunctuation", "Po"},
                                   {"symbol", "S"},
                                   {"mathsymbol", "Sm"},
                                   {"currencysymbol", "Sc"},
                                   {"modifiersymbol", "Sk"},
                                   {"othersymbol", "So"},
                                   {"separator", "Z"},
                                   {"spaceseparator", "Zs"},
                                   {"lineseparator", "Zl"},
                                   {"paragraphseparator", "Zp"},
                                   {"other", "C"},
                                   {"control", "Cc"},
                                   {"cntrl", "Cc"},
                                   {"format", "Cf"},
                                   {"surrogate", "Cs"},
                                   {"privateuse", "Co"},
                                   {"unassigned", "Cn"},
                                   {"digit", "Nd"},
                                   {"any", "Any"}};
  for (const Long& entry : kLong) {
    if (entry.name == folded) return category_mask(entry.category);
  }
  std::string name = folded;
  if (!name.empty()) name[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(name[0])));
  if (name == "Lc") name = "LC";
  return name.size() <= 2 ? category_mask(name) : 0;
}

/// The members of a property that PCRE2 knows by this name (a script, a binary property),
/// found by asking it; empty where none.
CodePointSet ask_pcre2(const std::string& property) {
  const std::string pattern = "\\p{" + property + "}";
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &offset, nullptr);
  if (code == nullptr) return {};
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  CodePointSet set;
  std::string text;
  for (char32_t c = 0; c <= kLastCodePoint && data != nullptr; ++c) {
    if (c == 0xD800) c = 0xE000;
    text.clear();
    append_utf8(text, c);
    if (pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, PCRE2_NO_UTF_CHECK, data,
                    nullptr) < 0) {
      continue;
    }
    if (!set.empty() && set.back().last + 1 == c) {
      set.back().last = c;
    } else {
      set.push_back({c, c});
    }
  }
  pcre2_match_data_free(data);
  pcre2_code_free(code);
  return set;
}

CodePointSet script_additions(const std::string& folded) {
  if (folded == "han") return {{0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF}};
  if (folded == "hiragana") return {{0x1B132, 0x1B132}};
  if (folded == "katakana") return {{0x1B155, 0x1B155}};
  return {};
}

CodePointSet alphabetic() {
  CodePointSet set = ask_pcre2("Alphabetic");
  const CategoryMask mask = category_mask("L") | category_mask("Nl");  // recent vowel signs are left out
  for (const RecentRange& recent : recent_ranges()) {
    if ((mask_of(recent.category) & mask) != 0) set.push_back({recent.first, recent.last});
  }
  return set_of_ranges(std::move(set));
}

}  // namespace

void refuse_pattern(std::string_view pattern, std::size_t at, std::string_view reason) {
  throw base::InvalidInput(
      base::concat("the regular expression '", pattern, "' cannot be used: ", reason, " (at byte ", at, ")"));
}

CharacterClass CharacterClass::of_ranges(const CodePointSet& ranges) {
  CharacterClass result;
  result.ranges_ = set_of_ranges(ranges);
  return result;
}

CharacterClass CharacterClass::of_categories(CategoryMask mask) {
  CharacterClass result;
  result.mask_ = mask;
  return result;
}

CharacterClass CharacterClass::of_shorthand(char letter, bool in_brackets) {
  if (letter == 'd') return of_categories(category_mask("Nd"));
  if (letter == 'h') return of_ranges({{'0', '9'}, {'A', 'F'}, {'a', 'f'}});
  if (letter == 's') return of_ranges({white_space_ranges().begin(), white_space_ranges().end()});
  CodePointSet extra;
  for (const CodePointRange& range : word_extra_ranges()) {
    if (!in_brackets || range.first > 0xFF) extra.push_back(range);
  }
  CharacterClass word = of_ranges(extra);
  word.mask_ = category_mask("L") | category_mask("M") | category_mask("Nd") | category_mask("Nl") |
               category_mask("Pc");
  return word;
}

CharacterClass CharacterClass::of_property(std::string_view name, bool posix) {
  const std::string folded = folded_name(name);
  if (folded == "space") return of_shorthand('s');
  if (folded == "word") return of_shorthand('w', posix);
  if (folded == "xdigit") return of_shorthand('h');
  if (folded == "ascii") return of_ranges({{0, 0x7F}});
  if (folded == "blank") return of_categories(category_mask("Zs")).united(of_ranges({{'\t', '\t'}}));
  if (folded == "alpha" || folded == "alphabetic") return of_ranges(alphabetic());
  if (folded == "alnum") return of_ranges(alphabetic()).united(of_categories(category_mask("Nd")));
  if (folded == "assigned") return of_categories(category_mask("Cn")).complement();
  if (folded == "graph" || folded == "print") {
    const CategoryMask out = category_mask("Cc") | category_mask("Cn") | category_mask("Cs");
    const CharacterClass graph = of_categories(out).united(of_shorthand('s')).complement();
    return folded == "graph" ? graph : graph.united(of_categories(category_mask("Zs")));
  }
  if (posix && folded == "punct") return of_categories(category_mask("P") | category_mask("S"));
  if (const CategoryMask mask = mask_of_name(folded); mask != 0) return of_categories(mask);
  std::string asked = folded;
  if (folded == "lower") asked = "lowercase";
  if (folded == "upper") asked = "uppercase";
  // "sc:" keeps PCRE2 from taking script extensions; binary properties have no such prefix.
  CodePointSet set = ask_pcre2("sc:" + asked);
  if (set.empty()) set = ask_pcre2(asked);
  if (set.empty()) throw base::InvalidInput(base::concat("the property '", name, "' is not known"));
  return of_ranges(set_union(set, script_additions(folded)));
}

CharacterClass CharacterClass::complement() const {
  CharacterClass result = *this;
  result.negated_ = !negated_;
  return result;
}

CodePointSet CharacterClass::set() const {
  const CodePointSet members = mask_ == 0 ? ranges_ : set_union(ranges_, set_of_categories(mask_));
  return negated_ ? set_complement(members) : members;
}

CharacterClass CharacterClass::united(const CharacterClass& other) const {
  if (!negated_ && !other.negated_) {
    CharacterClass result = of_ranges(set_union(ranges_, other.ranges_));
    result.mask_ = mask_ | other.mask_;
    return result;
  }
  if (ranges_.empty() && mask_ == 0 && !negated_) return other;
  return of_ranges(set_union(set(), other.set()));
}

CharacterClass CharacterClass::intersected(const CharacterClass& other) const {
  return of_ranges(set_intersection(set(), other.set()));
}

std::string CharacterClass::pattern() const {
  std::string inside;
  if (mask_ == 0 || is_writable(mask_)) {
    if (mask_ != 0) inside = write_categories(mask_);
    for (const CodePointRange& range : ranges_) append_range(inside, range);
    if (inside.empty()) return negated_ ? "(?s:.)" : "(?!)";
    return (negated_ ? "[^" : "[") + inside + "]";
  }
  for (CodePointRange range : set()) {
    if (range.first == 0xD800 && range.last == 0xDFFF) continue;
    if (range.first >= 0xD800 && range.first <= 0xDFFF) range.first = 0xE000;
    if (range.last >= 0xD800 && range.last <= 0xDFFF) range.last = 0xD7FF;
    append_range(inside, range);
  }
  return inside.empty() ? "(?!)" : "[" + inside + "]";
}

CharacterClass read_property(std::string_view pattern, std::size_t& at) {
  const std::size_t begin = at;
  bool negated = pattern[at + 1] == 'P';
  const std::size_t close = pattern.find('}', at);
  if (at + 2 >= pattern.size() || pattern[at + 2] != '{' || close == std::string_view::npos) {
    refuse_pattern(pattern, begin, "\\p without {name}");
  }
  std::string_view name = pattern.substr(at + 3, close - at - 3);
  if (name.starts_with('^')) {
    negated = !negated;
    name.remove_prefix(1);
  }
  at = close + 1;
  try {
    const CharacterClass property = CharacterClass::of_property(name, false);
    return negated ? property.complement() : property;
  } catch (const base::InvalidInput& error) {
    refuse_pattern(pattern, begin, error.what());
  }
}

namespace {

char32_t read_hex(std::string_view pattern, std::size_t& at, std::size_t most) {
  char32_t value = 0;
  std::size_t count = 0;
  while (at < pattern.size() && count < most && std::isxdigit(static_cast<unsigned char>(pattern[at])) != 0) {
    const char c = pattern[at++];
    value = value * 16 + static_cast<char32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    ++count;
  }
  if (count == 0) refuse_pattern(pattern, at, "an escape without its hexadecimal digits");
  return value;
}

char32_t checked_character(std::string_view pattern, std::size_t at, char32_t value) {
  if (value > kLastCodePoint || (value >= 0xD800 && value <= 0xDFFF))
    refuse_pattern(pattern, at, "not a character");
  return value;
}

}  // namespace

char32_t read_character_escape(std::string_view pattern, std::size_t& at, bool in_class) {
  const std::size_t begin = at++;
  if (at >= pattern.size()) refuse_pattern(pattern, begin, "it ends in a backslash");
  const char c = pattern[at];
  if (c == 'x' || c == 'u') {
    ++at;
    if (c == 'x' && at < pattern.size() && pattern[at] == '{') {
      const std::size_t close = pattern.find('}', at);
      char32_t value = read_hex(pattern, ++at, 8);
      if (close != at) refuse_pattern(pattern, begin, "\\x{...} holds more than one number");
      ++at;
      return checked_character(pattern, begin, value);
    }
    const char32_t value = read_hex(pattern, at, c == 'x' ? 2 : 4);
    if (c == 'x' && value > 0x7F) refuse_pattern(pattern, begin, "a raw byte above 7F");
    return checked_character(pattern, begin, value);
  }
  static constexpr std::string_view kLetters = "tnrfvae0";
  static constexpr std::string_view kControls("\t\n\r\f\v\a\x1b\0", 8);
  if (c >= '0' && c <= '7' && (c == '0' || in_class)) {
    char32_t value = 0;
    for (int i = 0; i < 3 && at < pattern.size() && pattern[at] >= '0' && pattern[at] <= '7'; ++i) {
      value = value * 8 + static_cast<char32_t>(pattern[at++] - '0');
    }
    if (value > 0x7F) refuse_pattern(pattern, begin, "a raw byte above 7F");
    return value;
  }
  if (c == 'c' || c == 'C' || c == 'M')
    refuse_pattern(pattern, begin, "control and meta escapes are not known here");
  if (in_class && c == 'b') return ++at, char32_t{'\b'};
  if (const std::size_t which = kLetters.find(c); which != std::string_view::npos) {
    ++at;
    return static_cast<char32_t>(kControls[which]);
  }
  const Utf8Char literal = utf8_at(pattern, at);
  at += literal.length;
  return literal.code_point;
}

namespace {

class BracketReader {
 public:
  BracketReader(std::string_view pattern, std::size_t& at) : pattern_(pattern), at_(at) {}

  CharacterClass read(int depth) {
    const std::size_t begin = at_;
    if (depth > kMostNesting) refuse_pattern(pattern_, begin, "classes nested too deep");
    ++at_;
    bool negated = false;
    if (peek() == '^') {
      negated = true;
      ++at_;
    }
    CharacterClass whole;
    CharacterClass part;
    bool intersecting = false;
    bool first = true;
    while (true) {
      if (at_ >= pattern_.size()) refuse_pattern(pattern_, begin, "a class without its ]");
      // A ] that comes first is a member, if another one closes the class.
      const bool literal_bracket =
          first && peek() == ']' && pattern_.find(']', at_ + 1) != std::string_view::npos;
      if (peek() == ']' && !literal_bracket) break;
      if (pattern_.substr(at_).starts_with("&&")) {
        at_ += 2;
        whole = intersecting ? whole.intersected(part) : part;
        part = CharacterClass();
        intersecting = true;
      } else {
        part = part.united(read_item(depth));
      }
      first = false;
    }
    if (first) refuse_pattern(pattern_, begin, "an empty class");
    ++at_;
    whole = intersecting ? whole.intersected(part) : part;
    return negated ? whole.complement() : whole;
  }

 private:
  [[nodiscard]] char peek(std::size_t ahead = 0) const {
    return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0';
  }

  CharacterClass read_item(int depth) {
    if (peek() == '[') {
      if (peek(1) == ':') {
        const std::size_t close = pattern_.find(":]", at_ + 2);
        if (close != std::string_view::npos) {
          std::string_view name = pattern_.substr(at_ + 2, close - at_ - 2);
          const bool negated = name.starts_with('^');
          if (negated) name.remove_prefix(1);
          if (name.find_first_not_of("abcdefghijklmnopqrstuvwxyz") == std::string_view::npos) {
            at_ = close + 2;
            const CharacterClass named = CharacterClass::of_property(name, true);
            return negated ? named.complement() : named;
          }
        }
      }
      return read(depth + 1);
    }
    if (peek() == '\\') {
      const char letter = peek(1);
      if (letter == 'p' || letter == 'P') return read_property(pattern_, at_);
      if (std::string_view("sdwhSDWH").find(letter) != std::string_view::npos) {
        at_ += 2;
        const CharacterClass named = CharacterClass::of_shorthand(static_cast<char>(letter | 0x20), true);
        return (letter & 0x20) == 0 ? named.complement() : named;
      }
      if (letter == 'R' || letter == 'X') refuse_pattern(pattern_, at_, "\\R or \\X in a class");
    }
    return read_range();
  }

  char32_t read_character() {
    if (peek() == '\\') return read_character_escape(pattern_, at_, true);
    const Utf8Char next = utf8_at(pattern_, at_);
    at_ += next.length;
    return next.code_point;
  }

  CharacterClass read_range() {
    const std::size_t begin = at_;
    const char32_t first = read_character();
    const bool shorthand =
        peek(1) == '\\' && std::string_view("sdwhSDWHpP").find(peek(2)) != std::string_view::npos;
    if (peek() != '-' || peek(1) == ']' || peek(1) == '[' || peek(1) == '\0' || shorthand) {
      return CharacterClass::of_ranges({{first, first}});
    }
    ++at_;
    const char32_t last = read_character();
    if (last < first) refuse_pattern(pattern_, begin, "a range that runs backwards");
    return CharacterClass::of_ranges({{first, last}});
  }

  std::string_view pattern_;
  std::size_t& at_;
};

}  // namespace

CharacterClass read_bracket_class(std::string_view pattern, std::size_t& at) {
  return BracketReader(pattern, at).read(0);
}

}  // namespace kvcal::formats
