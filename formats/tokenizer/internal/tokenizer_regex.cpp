#include "formats/tokenizer/internal/tokenizer_regex.h"

#include <oniguruma.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "formats/tokenizer/internal/oniguruma_unicode.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

constexpr std::size_t kMostPatternBytes = std::size_t{16} << 10;  // the longest real ones have some 5 KiB
constexpr unsigned kMostNesting = 128;  // Oniguruma recurses: 512 KiB of stack suffice at this depth
constexpr unsigned long kRetries = 10'000'000;
constexpr unsigned long kRetriesPerSearch = 1024;
constexpr int kPlaces = 1024;  // tried one by one after a search that did not suffice
constexpr unsigned kMostStackEntries = 1U << 24;
// Real tokenizers need a tenth of a microsecond a byte.
constexpr double kSeconds = 10;
constexpr double kSecondsPerByte = 1e-5;
constexpr int kSearchesPerLook = 16;  // at the clock

struct FreeRegex {
  void operator()(OnigRegex regex) const { onig_free(regex); }
};
struct FreeParam {
  void operator()(OnigMatchParam* param) const { onig_free_match_param(param); }
};
using Regex = std::unique_ptr<OnigRegexType, FreeRegex>;
using MatchParam = std::unique_ptr<OnigMatchParam, FreeParam>;

struct Region : OnigRegion {
  Region() { onig_region_init(this); }
  ~Region() { onig_region_free(this, 0); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
};

const OnigUChar* bytes_of(std::string_view text) {
  return reinterpret_cast<const OnigUChar*>(text.data());
}

std::string error_text(int code, OnigErrorInfo* info) {
  std::array<OnigUChar, ONIG_MAX_ERROR_MESSAGE_LEN> buffer{};
  const int length = onig_is_error_code_needs_param(code) != 0 && info != nullptr
                         ? onig_error_code_to_str(buffer.data(), code, info)
                         : onig_error_code_to_str(buffer.data(), code);
  return std::string(reinterpret_cast<const char*>(buffer.data()), static_cast<std::size_t>(length));
}

/// A pattern as a message shows it.
std::string shown(std::string_view pattern) {
  constexpr std::size_t kMost = 200;
  if (pattern.size() <= kMost) return base::concat("'", pattern, "'");
  std::size_t end = kMost;
  while (end > 0 && (static_cast<unsigned char>(pattern[end]) & 0xC0U) == 0x80) --end;
  return base::concat("'", pattern.substr(0, end), "...' (", pattern.size(), " bytes)");
}

[[noreturn]] void refuse_pattern(std::string_view pattern, std::string_view reason) {
  throw base::InvalidInput(
      base::concat("the regular expression ", shown(pattern), " cannot be used: ", reason));
}

/// Oniguruma for this process. Its limit on nesting is global; the limits of a search are not.
OnigEncoding initialised_encoding() {
  static const OnigEncoding kEncoding = [] {
    const OnigEncoding encoding = reference_utf8();
    std::array<OnigEncoding, 1> encodings = {encoding};
    if (onig_initialize(encodings.data(), 1) != ONIG_NORMAL) throw base::Error("Oniguruma does not start");
    onig_set_parse_depth_limit(kMostNesting);
    return encoding;
  }();
  return kEncoding;
}

bool has_escape(std::string_view pattern, char letter) {
  for (std::size_t at = 0; at + 1 < pattern.size(); ++at) {
    if (pattern[at] != '\\') continue;
    if (pattern[++at] == letter) return true;
  }
  return false;
}

/// The reference's syntax, which is Oniguruma's own, less its callouts: (*FAIL), (?{...}).
OnigSyntaxType* syntax_of_patterns() {
  static OnigSyntaxType syntax = [] {
    OnigSyntaxType made = *ONIG_SYNTAX_ONIGURUMA;
    made.op2 &= ~static_cast<unsigned>(ONIG_SYN_OP2_QMARK_BRACE_CALLOUT_CONTENTS |
                                       ONIG_SYN_OP2_ASTERISK_CALLOUT_NAME);
    return made;
  }();
  return &syntax;
}

/// Whether \p{word} or \P{^word} stands at pattern[at], however its name is written, and up to where.
struct WordProperty {
  std::size_t end = 0;  ///< 0: another property
  bool negated = false;
};
WordProperty word_property(std::string_view pattern, std::size_t at) {
  const std::size_t close = pattern.find('}', at);
  if (!pattern.substr(at + 2).starts_with('{') || close == std::string_view::npos) return {};
  std::string name;
  for (const char c : pattern.substr(at + 3, close - at - 3)) {
    if (c != ' ' && c != '_' && c != '-') name += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  }
  if (name != "word" && name != "^word") return {};
  return {close + 1, (pattern[at + 1] == 'P') != name.starts_with('^')};
}

/// What is put for the escape \letter at pattern[at], outside of brackets; moves `at` behind it. Where 6.9.8 is
/// not the reference: it repeats \R wrongly (\R* does not match "\n"), and its \p{word} lacks U+00B2.
std::string prepared_escape(std::string_view pattern, std::size_t& at) {
  const char letter = pattern[at + 1];
  if (letter == 'p' || letter == 'P') {
    const WordProperty word = word_property(pattern, at);
    if (word.end != 0) {
      at = word.end;
      return word.negated ? "\\W" : "\\w";
    }
  }
  at += 2;
  if (letter == 'R') return R"((?>\x0D\x0A|[\x0A-\x0D\x{85}\x{2028}\x{2029}]))";
  return {'\\', letter};
}

/// The pattern as Oniguruma gets it. Group calls are refused: the time that they take to compile is exponential
/// in their number.
std::string prepared(std::string_view pattern) {
  std::string out;
  int brackets = 0;
  for (std::size_t at = 0; at < pattern.size();) {
    if (pattern[at] == '\\' && at + 1 < pattern.size()) {
      const char letter = pattern[at + 1];
      if (letter == 'g')
        refuse_pattern(pattern, base::concat("the group call at byte ", at, " is not supported"));
      if (letter == 'R' && brackets > 0)
        refuse_pattern(pattern, base::concat("\\R at byte ", at, " stands in a class"));
      if (brackets == 0) {
        out += prepared_escape(pattern, at);
      } else {
        out += pattern.substr(at, 2);
        at += 2;
      }
      continue;
    }
    const char c = pattern[at++];
    out += c;
    if (c == ']' && brackets > 0) --brackets;
    if (c != '[') continue;
    ++brackets;
    // A ] that comes first is a member.
    if (pattern.substr(at).starts_with('^')) out += pattern[at++];
    if (pattern.substr(at).starts_with(']')) out += pattern[at++];
  }
  return out;
}

/// `source` is what messages name.
Regex compile(std::string_view source, std::string_view pattern, OnigSyntaxType* syntax) {
  OnigEncoding encoding = initialised_encoding();
  OnigRegex regex = nullptr;
  OnigErrorInfo info{};
  const int code = onig_new(&regex, bytes_of(pattern), bytes_of(pattern) + pattern.size(), ONIG_OPTION_NONE,
                            encoding, syntax, &info);
  if (code == ONIGERR_MEMORY) throw std::bad_alloc();
  if (code != ONIG_NORMAL) refuse_pattern(source, error_text(code, &info));
  return Regex(regex);
}

MatchParam limits(unsigned long retries_in_search) {
  MatchParam param(onig_new_match_param());
  if (!param) throw std::bad_alloc();
  onig_initialize_match_param(param.get());
  onig_set_retry_limit_in_match_of_match_param(param.get(), kRetries);
  onig_set_retry_limit_in_search_of_match_param(param.get(), retries_in_search);
  onig_set_match_stack_limit_size_of_match_param(param.get(), kMostStackEntries);
  return param;
}

bool is_boundary(std::string_view text, std::size_t at) {
  return at == text.size() || (static_cast<unsigned char>(text[at]) & 0xC0U) != 0x80;
}

}  // namespace

struct TokenizerRegex::Compiled {
  std::string source;  ///< as the user wrote it, for messages
  Regex regex;
  bool has_start_anchor;  ///< \G: where a search begins matters
};

TokenizerRegex::TokenizerRegex(std::unique_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {}
TokenizerRegex::~TokenizerRegex() = default;
TokenizerRegex::TokenizerRegex(TokenizerRegex&&) noexcept = default;
TokenizerRegex& TokenizerRegex::operator=(TokenizerRegex&&) noexcept = default;

TokenizerRegex TokenizerRegex::from_oniguruma(std::string_view pattern) {
  if (pattern.size() > kMostPatternBytes)
    refuse_pattern(pattern, base::concat("patterns may have ", kMostPatternBytes, " bytes"));
  if (first_invalid_utf8(pattern)) throw base::InvalidInput("a regular expression is not UTF-8");
  return TokenizerRegex(std::make_unique<Compiled>(
      Compiled{std::string(pattern), compile(pattern, prepared(pattern), syntax_of_patterns()),
               has_escape(pattern, 'G')}));
}

TokenizerRegex TokenizerRegex::from_literal(std::string_view text) {
  return TokenizerRegex(
      std::make_unique<Compiled>(Compiled{std::string(text), compile(text, text, ONIG_SYNTAX_ASIS), false}));
}

namespace {

/// The matches of one text, one after the other. A search may go on for long without a look at the clock, even
/// without a retry ((?>a+)b on a run of a), so it gets few retries, of which each place that it tries takes at
/// least one; where they do not suffice, the next places are tried one by one.
class Search {
 public:
  Search(OnigRegex regex, bool has_start_anchor, std::string_view source, std::string_view text)
      : regex_(regex),
        has_start_anchor_(has_start_anchor),
        source_(source),
        text_(text),
        search_limits_(limits(has_start_anchor ? kRetries : kRetriesPerSearch)),
        place_limits_(limits(kRetries)) {}

  /// The first match that begins at `from` or later.
  std::optional<PatternSpan> next(std::size_t from) {
    const OnigUChar* start = bytes_of(text_);
    const OnigUChar* end = start + text_.size();
    while (from <= text_.size()) {
      if (++searches_ % kSearchesPerLook == 0) look_at_clock(from);
      const int found = onig_search_with_param(regex_, start, end, start + from, end, &region_,
                                               ONIG_OPTION_NONE, search_limits_.get());
      if (found != ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER || has_start_anchor_) return result(found, from);
      for (int i = 0; i < kPlaces && from <= text_.size(); ++i) {
        const int length = onig_match_with_param(regex_, start, end, start + from, &region_, ONIG_OPTION_NONE,
                                                 place_limits_.get());
        if (length != ONIG_MISMATCH) return result(length, from);
        from += from < text_.size() ? utf8_at(text_, from).length : 1;
        if (i % kSearchesPerLook == 0) look_at_clock(from);
      }
    }
    return std::nullopt;
  }

  [[noreturn]] void fail(std::size_t at, std::string_view reason) const {
    throw base::InvalidInput(base::concat("the regular expression ", shown(source_), " fails on a text of ",
                                          text_.size(), " bytes, at byte ", at, ": ", reason));
  }

 private:
  using Clock = std::chrono::steady_clock;

  /// What Oniguruma found, or the error that it gave.
  [[nodiscard]] std::optional<PatternSpan> result(int found, std::size_t from) const {
    if (found == ONIG_MISMATCH) return std::nullopt;
    if (found == ONIGERR_MEMORY) throw std::bad_alloc();
    if (found < 0) fail(from, error_text(found, nullptr));
    const PatternSpan match{static_cast<std::size_t>(region_.beg[0]),
                            static_cast<std::size_t>(region_.end[0]), true};
    if (match.begin > match.end) fail(from, "its match goes backwards");  // \K in a lookahead
    if (!is_boundary(text_, match.begin) || !is_boundary(text_, match.end))
      fail(from, "its match cuts a character");  // raw bytes
    return match;
  }

  void look_at_clock(std::size_t at) const {
    const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    const double most = kSeconds + kSecondsPerByte * static_cast<double>(text_.size());
    if (seconds > most) fail(at, base::concat("it takes longer than ", most, " seconds"));
  }

  OnigRegex regex_;
  bool has_start_anchor_;
  std::string_view source_;
  std::string_view text_;
  MatchParam search_limits_;
  MatchParam place_limits_;
  Region region_;
  Clock::time_point begin_ = Clock::now();
  std::size_t searches_ = 0;
};

}  // namespace

std::vector<PatternSpan> TokenizerRegex::find_spans(std::string_view text) const {
  if (text.empty()) return {{0, 0, false}};
  // Oniguruma counts in int.
  if (text.size() > static_cast<std::size_t>(std::numeric_limits<int>::max()))
    throw base::InvalidInput("a text of 2 GiB or more cannot be cut by a regular expression");
  Search search(compiled_->regex.get(), compiled_->has_start_anchor, compiled_->source, text);
  std::vector<PatternSpan> spans;
  std::size_t done = 0;                   // up to here the spans cover the text
  std::size_t from = 0;                   // where the next search begins
  std::size_t last_match_end = SIZE_MAX;  // an empty match right behind a match does not count
  while (from <= text.size()) {
    const std::optional<PatternSpan> match = search.next(from);
    if (!match) break;
    if (match->begin < done) search.fail(from, "its matches overlap");  // \K in a lookbehind
    if (match->begin == match->end && match->end == last_match_end) {
      from = match->end < text.size() ? match->end + utf8_at(text, match->end).length : match->end + 1;
      continue;
    }
    if (done != match->begin) spans.push_back({done, match->begin, false});
    spans.push_back(*match);
    done = from = last_match_end = match->end;
  }
  if (done != text.size()) spans.push_back({done, text.size(), false});
  return spans;
}

}  // namespace kvcal::formats
