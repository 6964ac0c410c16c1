// From Oniguruma's Ruby syntax to PCRE2's. What differs in Oniguruma's:
//
//   ^ and $                  line anchors
//   (?m)                     lets the dot match a newline
//   \h, \v                   a hexadecimal digit, a vertical tab
//   x{n,m}+                  repeats the interval instead of being possessive
//   x{n}?                    an optional x{n}
//   x{,m}                    starts at 0
//   [...]                    classes nest and intersect
//   \w, \s, \d, \b and \p    follow another version of Unicode
#include <cctype>
#include <string>
#include <utility>

#include "base/error.h"
#include "formats/tokenizer/internal/tokenizer_regex.h"
#include "formats/tokenizer/internal/tokenizer_regex_class.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

constexpr int kMostNesting = 200;

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    std::string out = read_alternatives(0);
    if (at_ < pattern_.size()) refuse_pattern(pattern_, at_, "an unmatched )");
    return out;
  }

 private:
  [[nodiscard]] char peek(std::size_t ahead = 0) const {
    return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0';
  }
  [[nodiscard]] bool next_is(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }

  /// Up to the end or to a ) that it leaves.
  std::string read_alternatives(int depth) {
    if (depth > kMostNesting) refuse_pattern(pattern_, at_, "groups nested too deep");
    std::string out;
    while (at_ < pattern_.size() && peek() != ')') {
      if (peek() == '|') {
        out += '|';
        ++at_;
        continue;
      }
      const std::string atom = read_atom(depth);
      out += atom.empty() ? atom : read_quantifiers(atom);
    }
    return out;
  }

  std::string read_atom(int depth) {
    const char c = peek();
    if (c == '(') return read_group(depth);
    if (c == '[') return read_bracket_class(pattern_, at_).pattern();
    if (c == '\\') return read_escape();
    if (c == '.' || c == '^' || c == '$') {
      ++at_;
      return std::string(1, c);
    }
    if (c == '*' || c == '+' || c == '?')
      refuse_pattern(pattern_, at_, "a quantifier with nothing to repeat");
    const Utf8Char literal = utf8_at(pattern_, at_);
    at_ += literal.length;
    if (extended_ && (is_white_space(literal.code_point) || literal.code_point == '#'))
      return skip_extended(literal.code_point);
    return character(literal.code_point);
  }

  std::string skip_extended(char32_t first) {
    if (first == '#') {
      while (at_ < pattern_.size() && peek() != '\n') ++at_;
    }
    return {};
  }

  static std::string character(char32_t code_point) {
    std::string text;
    const bool plain =
        code_point >= 0x80 || std::isalnum(static_cast<int>(code_point)) != 0 || code_point <= ' ';
    if (!plain) text += '\\';
    if (code_point == 0) return "\\x{0}";
    append_utf8(text, code_point);
    // White space means nothing to PCRE2 only under (?x), which is never passed on.
    return text;
  }

  std::string read_group(int depth) {
    const std::size_t begin = at_;
    const bool outer_extended = extended_;
    std::string open = "(";
    ++at_;
    if (peek() == '*') refuse_pattern(pattern_, begin, "callouts are not known here");
    if (peek() == '?') {
      if (next_is("?#")) {
        at_ = pattern_.find(')', at_);
        if (at_ == std::string_view::npos) refuse_pattern(pattern_, begin, "a comment without its )");
        ++at_;
        return {};
      }
      open = read_group_kind(begin);
    }
    if (open.empty()) {
      // (?i) and the like: it holds to the end of the group around it, alternatives included.
      std::string rest = read_alternatives(depth + 1);
      return "(?" + std::exchange(inline_options_, {}) + ":" + rest + ")";
    }
    std::string inside = read_alternatives(depth + 1);
    if (peek() != ')') refuse_pattern(pattern_, begin, "a group without its )");
    ++at_;
    extended_ = outer_extended;
    return open + inside + ")";
  }

  /// What follows "(": "?...". Returns the group's opening, or nothing for options without a body,
  /// left in inline_options_.
  std::string read_group_kind(std::size_t begin) {
    for (const std::string_view kind : {"?:", "?=", "?!", "?>", "?<=", "?<!"}) {
      if (!next_is(kind)) continue;
      at_ += kind.size();
      return "(" + std::string(kind);
    }
    if (next_is("?<") || next_is("?'")) {
      const std::size_t close = pattern_.find(peek(1) == '<' ? '>' : '\'', at_ + 2);
      if (close == std::string_view::npos) refuse_pattern(pattern_, begin, "a group's name without its end");
      const std::string name(pattern_.substr(at_ + 2, close - at_ - 2));
      at_ = close + 1;
      return "(?<" + name + ">";
    }
    return read_options(begin);
  }

  std::string read_options(std::size_t begin) {
    std::string options;
    bool on = true;
    for (++at_; peek() != ')' && peek() != ':'; ++at_) {
      const char c = peek();
      if (c == '-') {
        on = false;
        options += '-';
      } else if (c == 'i') {
        options += 'i';
      } else if (c == 'm') {
        options += 's';
      } else if (c == 'x') {
        extended_ = on;
      } else {
        refuse_pattern(pattern_, begin,
                       base::concat("the group (?", std::string(1, c), " is not known here"));
      }
    }
    const bool has_body = peek() == ':';
    ++at_;
    if (has_body) return "(?" + options + ":";
    inline_options_ = options;
    return {};
  }

  static std::string word_boundary(bool negated) {
    const std::string word = CharacterClass::of_shorthand('w').pattern();
    const std::string ahead = negated ? "(?!" : "(?=";
    const std::string not_ahead = negated ? "(?=" : "(?!";
    return "(?:(?<=" + word + ")" + not_ahead + word + ")|(?<!" + word + ")" + ahead + word + "))";
  }

  std::string read_escape() {
    const std::size_t begin = at_;
    const char c = peek(1);
    if (c == 'p' || c == 'P') return read_property(pattern_, at_).pattern();
    if (std::string_view("sdwhSDWH").find(c) != std::string_view::npos && c != '\0') {
      at_ += 2;
      const CharacterClass named = CharacterClass::of_shorthand(static_cast<char>(c | 0x20));
      return ((c & 0x20) == 0 ? named.complement() : named).pattern();
    }
    if (c == 'b' || c == 'B') return at_ += 2, word_boundary(c == 'B');
    if (c == 'R' || c == 'X') return at_ += 2, std::string(c == 'R' ? "(?>\\R)" : "(?>\\X)");
    if (c == 'A' || c == 'Z' || c == 'z' || c == 'G' || c == 'K') return at_ += 2, std::string("\\") + c;
    if (c == 'O') return at_ += 2, std::string("(?s:.)");
    if (c == 'N') return at_ += 2, std::string("[^\\n]");
    if (c == 'y' || c == 'Y' || c == 'g')
      refuse_pattern(pattern_, begin, base::concat("\\", std::string(1, c), " is not known here"));
    if (c == 'k') return read_named_reference(begin);
    if (c >= '1' && c <= '9') {
      std::string digits;
      for (++at_; std::isdigit(static_cast<unsigned char>(peek())) != 0; ++at_) digits += peek();
      return "\\g{" + digits + "}";
    }
    return character(read_character_escape(pattern_, at_, false));
  }

  std::string read_named_reference(std::size_t begin) {
    const std::size_t close = pattern_.find('>', at_);
    if (peek(2) != '<' || close == std::string_view::npos)
      refuse_pattern(pattern_, begin, "\\k without <name>");
    const std::string name(pattern_.substr(at_ + 3, close - at_ - 3));
    at_ = close + 1;
    return "\\g{" + name + "}";
  }

  /// An interval at the current place: {n}, {n,}, {n,m} or {,m}, as PCRE2 writes it;
  /// nothing where the brace is a literal.
  std::string read_interval() {
    std::size_t at = at_ + 1;
    const auto digits = [&] {
      const std::size_t from = at;
      while (at < pattern_.size() && std::isdigit(static_cast<unsigned char>(pattern_[at])) != 0) ++at;
      return std::string(pattern_.substr(from, at - from));
    };
    const std::string low = digits();
    if (at < pattern_.size() && pattern_[at] == '}' && !low.empty()) {
      at_ = at + 1;
      return "{" + low + "}";
    }
    if (at >= pattern_.size() || pattern_[at] != ',') return {};
    ++at;
    const std::string high = digits();
    if (at >= pattern_.size() || pattern_[at] != '}' || (low.empty() && high.empty())) return {};
    at_ = at + 1;
    return "{" + (low.empty() ? "0" : low) + "," + high + "}";
  }

  std::string read_quantifiers(std::string atom) {
    while (at_ < pattern_.size()) {
      const char c = peek();
      if (c == '*' || c == '+' || c == '?') {
        ++at_;
        std::string quantifier(1, c);
        if (peek() == '?' || peek() == '+') quantifier += pattern_[at_++];
        atom = "(?:" + atom + quantifier + ")";
        continue;
      }
      if (c != '{') break;
      const std::string interval = read_interval();
      if (interval.empty()) break;
      const bool fixed = interval.find(',') == std::string::npos;
      const bool lazy = peek() == '?' && !fixed;
      if (lazy) ++at_;
      atom = "(?:" + atom + interval + (lazy ? "?" : "") + ")";
    }
    return atom;
  }

  std::string_view pattern_;
  std::size_t at_ = 0;
  bool extended_ = false;
  std::string inline_options_;
};

}  // namespace

std::string pcre2_from_oniguruma(std::string_view pattern) {
  if (first_invalid_utf8(pattern)) throw base::InvalidInput("a regular expression is not UTF-8");
  return Translator(pattern).run();
}

}  // namespace kvcal::formats
