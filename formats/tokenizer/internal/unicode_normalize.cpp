// Normal forms. utf8proc decomposes and composes; the ordering of combining marks is ours, since its own is
// quadratic in the length of a run of them.
#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "formats/tokenizer/internal/unicode.h"
#include "formats/tokenizer/internal/unicode_tables.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

bool contains(std::span<const CodePointRange> ranges, char32_t code_point) {
  const auto after =
      std::upper_bound(ranges.begin(), ranges.end(), code_point,
                       [](char32_t value, const CodePointRange& range) { return value < range.first; });
  return after != ranges.begin() && code_point <= std::prev(after)->last;
}

/// Whether the reference's data do not know the character: a starter that neither decomposes nor composes.
bool is_inert(char32_t code_point) {
  if (code_point < 0x7FD) return false;
  if (contains(recent_marks(), code_point) || contains(recent_decompositions(), code_point)) return true;
  return std::any_of(recent_ranges().begin(), recent_ranges().end(), [&](const RecentRange& range) {
    return code_point >= range.first && code_point <= range.last;
  });
}

int combining_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

/// Sorts each run of characters that are not starters by combining class, stably (Unicode 3.11, D109).
void order_marks(std::vector<utf8proc_int32_t>& text) {
  auto at = text.begin();
  while (at != text.end()) {
    const auto begin = std::find_if(at, text.end(), [](auto c) { return combining_class(c) != 0; });
    const auto end = std::find_if(begin, text.end(), [](auto c) { return combining_class(c) == 0; });
    std::stable_sort(begin, end, [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    at = end;
  }
}

/// One stretch of characters that the data know, normalised and appended.
void normalize_stretch(std::string& out, const std::vector<char32_t>& stretch, NormalForm form,
                       std::vector<utf8proc_int32_t>& buffer) {
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | (compatible ? UTF8PROC_COMPAT : 0) |
                                                      (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE));
  const auto decompose =
      static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0));
  buffer.clear();
  for (const char32_t code_point : stretch) {
    utf8proc_int32_t parts[32];  // the longest decomposition of any character has 18
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code_point), parts, 32, decompose, nullptr);
    if (count < 0 || count > 32) {
      buffer.push_back(static_cast<utf8proc_int32_t>(code_point));
    } else {
      buffer.insert(buffer.end(), parts, parts + count);
    }
  }
  order_marks(buffer);
  if (compose) {
    const utf8proc_ssize_t length =
        utf8proc_normalize_utf32(buffer.data(), static_cast<utf8proc_ssize_t>(buffer.size()), options);
    if (length < 0) throw base::Error(base::concat("utf8proc cannot normalise: ", utf8proc_errmsg(length)));
    buffer.resize(static_cast<std::size_t>(length));
  }
  for (const utf8proc_int32_t code_point : buffer) append_utf8(out, static_cast<char32_t>(code_point));
}

}  // namespace

std::string normalize_unicode(std::string_view text, NormalForm form) {
  std::string out;
  out.reserve(text.size());
  std::vector<char32_t> stretch;
  std::vector<utf8proc_int32_t> buffer;
  const auto flush = [&] {
    if (!stretch.empty()) normalize_stretch(out, stretch, form, buffer);
    stretch.clear();
  };
  std::size_t at = 0;
  while (at < text.size()) {
    const Utf8Char next = utf8_at(text, at);
    at += next.length;
    // An ASCII character is a starter and composes with nothing before it: where another follows, it is done.
    const bool alone =
        next.code_point < 0x80 && (at == text.size() || static_cast<unsigned char>(text[at]) < 0x80);
    if (next.code_point < 0x80 || is_inert(next.code_point)) flush();
    if (alone || (next.code_point >= 0x80 && is_inert(next.code_point))) {
      append_utf8(out, next.code_point);
    } else {
      stretch.push_back(next.code_point);
    }
  }
  flush();
  return out;
}

}  // namespace kvcal::formats
