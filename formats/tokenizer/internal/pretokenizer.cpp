#include "formats/tokenizer/internal/pretokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "formats/tokenizer/internal/unicode.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

using Spans = std::vector<PatternSpan>;

/// A delimiter joins the span before it, unless that is a delimiter, too.
Spans merged_with_previous(const Spans& spans) {
  Spans merged;
  bool previous = false;
  for (const PatternSpan& span : spans) {
    if (span.matched && !previous && !merged.empty()) {
      merged.back().end = span.end;
    } else {
      merged.push_back(span);
    }
    previous = span.matched;
  }
  return merged;
}

Spans merged_with_next(const Spans& spans) {
  Spans merged;
  bool previous = false;
  for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
    if (span->matched && !previous && !merged.empty()) {
      merged.back().begin = span->begin;
    } else {
      merged.push_back(*span);
    }
    previous = span->matched;
  }
  std::reverse(merged.begin(), merged.end());
  return merged;
}

Spans contiguous(const Spans& spans) {
  Spans merged;
  bool previous = false;
  for (const PatternSpan& span : spans) {
    if (span.matched == previous && !merged.empty()) {
      merged.back().end = span.end;
    } else {
      merged.push_back(span);
    }
    previous = span.matched;
  }
  return merged;
}

void cut(const TextPiece& piece, Spans spans, SplitBehavior behavior, std::vector<TextPiece>& out) {
  if (behavior == SplitBehavior::kMergedWithPrevious) spans = merged_with_previous(spans);
  if (behavior == SplitBehavior::kMergedWithNext) spans = merged_with_next(spans);
  if (behavior == SplitBehavior::kContiguous) spans = contiguous(spans);
  for (const PatternSpan& span : spans) {
    if (span.begin == span.end || (behavior == SplitBehavior::kRemoved && span.matched)) continue;
    out.push_back({piece.text.substr(span.begin, span.end - span.begin), piece.at_origin && span.begin == 0});
  }
}

/// Every character that `is_delimiter` a match of its own.
template <typename Predicate>
Spans spans_of_characters(std::string_view text, const Predicate& is_delimiter) {
  Spans spans;
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char next = utf8_at(text, at);
    const std::size_t end = at + next.length;
    if (is_delimiter(next.code_point)) {
      if (done < at) spans.push_back({done, at, false});
      spans.push_back({at, end, true});
      done = end;
    }
    at = end;
  }
  if (done < text.size()) spans.push_back({done, text.size(), false});
  return spans;
}

/// Maximal runs of words and of other characters; white space is what matched.
Spans word_spans(std::string_view text) {
  const auto kind_of = [](char32_t c) { return is_rust_word(c) ? 0 : is_white_space(c) ? 2 : 1; };
  Spans spans;
  int previous = -1;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char next = utf8_at(text, at);
    const int kind = kind_of(next.code_point);
    if (kind == previous) {
      spans.back().end += next.length;
    } else {
      spans.push_back({at, at + next.length, kind == 2});
    }
    previous = kind;
    at += next.length;
  }
  return spans;
}

std::string replace_spaces(std::string_view text, std::string_view mark) {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  for (const char c : text) {
    if (c == ' ') {
      out += mark;
    } else {
      out += c;
    }
  }
  return out;
}

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

std::string bytes_to_characters(std::string_view text) {
  static const std::array<std::string, 256> kCharacters = [] {
    std::array<std::string, 256> characters;
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      append_utf8(characters[byte], printable ? byte : next++);
    }
    return characters;
  }();
  std::string out;
  out.reserve(text.size() + text.size() / 2);
  for (const char c : text) out += kCharacters[static_cast<unsigned char>(c)];
  return out;
}

void PreTokenizer::add_split(TokenizerRegex pattern, SplitBehavior behavior, bool invert) {
  steps_.emplace_back([pattern = std::make_shared<TokenizerRegex>(std::move(pattern)), behavior, invert](
                          TextPiece&& piece, std::vector<TextPiece>& out) {
    Spans spans = pattern->find_spans(piece.text);
    if (invert) {
      for (PatternSpan& span : spans) span.matched = !span.matched;
    }
    cut(piece, std::move(spans), behavior, out);
  });
}

void PreTokenizer::add_byte_level(bool add_prefix_space, bool use_regex) {
  std::shared_ptr<TokenizerRegex> pattern;
  if (use_regex) pattern = std::make_shared<TokenizerRegex>(TokenizerRegex::from_oniguruma(kGpt2Pattern));
  steps_.emplace_back([pattern, add_prefix_space](TextPiece&& piece, std::vector<TextPiece>& out) {
    if (add_prefix_space && !piece.text.starts_with(' ')) piece.text.insert(0, " ");
    const std::size_t first = out.size();
    if (pattern) {
      cut(piece, pattern->find_spans(piece.text), SplitBehavior::kIsolated, out);
    } else {
      out.push_back(std::move(piece));
    }
    for (std::size_t i = first; i < out.size(); ++i) out[i].text = bytes_to_characters(out[i].text);
  });
}

void PreTokenizer::add_metaspace(std::string mark, PrependScheme scheme, bool split) {
  const char32_t mark_character = utf8_at(mark, 0).code_point;
  steps_.emplace_back([mark = std::move(mark), mark_character, scheme, split](TextPiece&& piece,
                                                                              std::vector<TextPiece>& out) {
    piece.text = replace_spaces(piece.text, mark);
    const bool wanted =
        scheme == PrependScheme::kAlways || (scheme == PrependScheme::kFirst && piece.at_origin);
    if (wanted && !piece.text.starts_with(mark)) piece.text.insert(0, mark);
    if (!split) return out.push_back(std::move(piece));
    cut(piece, spans_of_characters(piece.text, [&](char32_t c) { return c == mark_character; }),
        SplitBehavior::kMergedWithNext, out);
  });
}

void PreTokenizer::add_digits(bool individual_digits) {
  const SplitBehavior behavior = individual_digits ? SplitBehavior::kIsolated : SplitBehavior::kContiguous;
  steps_.emplace_back([behavior](TextPiece&& piece, std::vector<TextPiece>& out) {
    cut(piece, spans_of_characters(piece.text, is_numeric), behavior, out);
  });
}

void PreTokenizer::add_punctuation(SplitBehavior behavior) {
  steps_.emplace_back([behavior](TextPiece&& piece, std::vector<TextPiece>& out) {
    cut(piece, spans_of_characters(piece.text, is_punctuation), behavior, out);
  });
}

void PreTokenizer::add_whitespace() {
  steps_.emplace_back([](TextPiece&& piece, std::vector<TextPiece>& out) {
    cut(piece, word_spans(piece.text), SplitBehavior::kRemoved, out);
  });
}

void PreTokenizer::add_whitespace_split() {
  steps_.emplace_back([](TextPiece&& piece, std::vector<TextPiece>& out) {
    cut(piece, spans_of_characters(piece.text, is_white_space), SplitBehavior::kRemoved, out);
  });
}

void PreTokenizer::apply(std::vector<TextPiece>& pieces) const {
  std::vector<TextPiece> next;
  for (const Step& step : steps_) {
    next.clear();
    next.reserve(pieces.size());
    for (TextPiece& piece : pieces) step(std::move(piece), next);
    std::swap(pieces, next);
  }
}

}  // namespace kvcal::formats
