#include "formats/tokenizer/internal/normalizer.h"

#include <utility>

#include "base/error.h"
#include "formats/tokenizer/internal/pretokenizer.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

template <typename Action>
std::string for_each_character(std::string_view text, const Action& action) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char next = utf8_at(text, at);
    action(out, next.code_point);
    at += next.length;
  }
  return out;
}

void strip(NormalizedText& text, bool left, bool right) {
  std::string_view view = text.text;
  while (left && !view.empty()) {
    const Utf8Char next = utf8_at(view, 0);
    if (!is_white_space(next.code_point)) break;
    view.remove_prefix(next.length);
    text.at_origin = false;
  }
  while (right && !view.empty()) {
    const std::size_t length = utf8_length_before(view, view.size());
    if (!is_white_space(utf8_at(view, view.size() - length).code_point)) break;
    view.remove_suffix(length);
  }
  text.text = std::string(view);
}

// A few steps that each make ten letters of one would fill any memory.
void check_growth(const NormalizedText& text, std::size_t bytes) {
  if (bytes <= text.most_bytes) return;
  throw base::InvalidInput(
      base::concat("the normalizer of tokenizer.json makes more than ", text.most_bytes,
                   " bytes of a text that is far smaller; tokenise elsewhere and give the "
                   "ids with --tokens FILE.npy"));
}

void replace(NormalizedText& text, const TokenizerRegex& pattern, const std::string& content) {
  std::string out;
  out.reserve(text.text.size());
  for (const PatternSpan& span : pattern.find_spans(text.text)) {
    const std::string_view part = std::string_view(text.text).substr(span.begin, span.end - span.begin);
    if (!span.matched) {
      out += part;
      continue;
    }
    // What replaces several characters stands at the last of them.
    if (span.begin == 0 && !part.empty() && (content.empty() || part.size() > utf8_at(part, 0).length))
      text.at_origin = false;
    out += content;
    check_growth(text, out.size());
  }
  text.text = std::move(out);
}

}  // namespace

void Normalizer::add_form(NormalForm form) {
  steps_.emplace_back([form](NormalizedText& text) { text.text = normalize_unicode(text.text, form); });
}

void Normalizer::add_lowercase() {
  steps_.emplace_back(
      [](NormalizedText& text) { text.text = for_each_character(text.text, append_lowercase); });
}

void Normalizer::add_strip_accents() {
  steps_.emplace_back([](NormalizedText& text) {
    if (!text.text.empty() && is_accent(utf8_at(text.text, 0).code_point)) text.at_origin = false;
    text.text = for_each_character(text.text, [](std::string& out, char32_t code_point) {
      if (!is_accent(code_point)) append_utf8(out, code_point);
    });
  });
}

void Normalizer::add_strip(bool left, bool right) {
  steps_.emplace_back([left, right](NormalizedText& text) { strip(text, left, right); });
}

void Normalizer::add_prepend(std::string prefix) {
  steps_.emplace_back([prefix = std::move(prefix)](NormalizedText& text) {
    if (!text.text.empty()) text.text.insert(0, prefix);
  });
}

void Normalizer::add_replace(TokenizerRegex pattern, std::string content) {
  steps_.emplace_back(
      [pattern = std::make_shared<TokenizerRegex>(std::move(pattern)),
       content = std::move(content)](NormalizedText& text) { replace(text, *pattern, content); });
}

void Normalizer::add_byte_level() {
  steps_.emplace_back([](NormalizedText& text) { text.text = bytes_to_characters(text.text); });
}

void Normalizer::apply(NormalizedText& text) const {
  constexpr std::size_t kMostGrowth = 64, kAlways = std::size_t{1} << 20;
  text.most_bytes = kMostGrowth * text.text.size() + kAlways;
  for (const auto& step : steps_) {
    step(text);
    check_growth(text, text.text.size());
  }
}

}  // namespace kvcal::formats
