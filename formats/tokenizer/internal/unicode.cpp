#include "formats/tokenizer/internal/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <utility>

#include "formats/tokenizer/internal/unicode_tables.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

constexpr char32_t kLastCodePoint = 0x10FFFF;

template <typename Range>
const Range* find_range(std::span<const Range> ranges, char32_t code_point) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), code_point,
                                      [](char32_t value, const Range& range) { return value < range.first; });
  if (after == ranges.begin()) return nullptr;
  const Range& range = *std::prev(after);
  return code_point <= range.last ? &range : nullptr;
}

bool in_ranges(std::span<const CodePointRange> ranges, char32_t code_point) {
  return find_range(ranges, code_point) != nullptr;
}

bool in_mask(char32_t code_point, CategoryMask mask) {
  return (mask_of(general_category(code_point)) & mask) != 0;
}

const CategoryMask kNumberMask = category_mask("N");
const CategoryMask kMarkMask = category_mask("M");
const CategoryMask kPunctuationMask = category_mask("P");
const CategoryMask kWordMask =
    category_mask("L") | kMarkMask | category_mask("Nd") | category_mask("Nl") | category_mask("Pc");

}  // namespace

CategoryMask category_mask(std::string_view name) {
  static constexpr std::array<std::string_view, 30> kNames = {
      "Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps",
      "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};
  CategoryMask mask = 0;
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    const bool cased = name == "LC" && i >= 1 && i <= 3;
    if (kNames[i] == name || kNames[i].substr(0, 1) == name || name == "Any" || cased)
      mask |= CategoryMask{1} << i;
  }
  return mask;
}

std::span<const RecentRange> recent_ranges() {
  return recent_table();
}

GeneralCategory general_category(char32_t code_point) {
  if (code_point > 0x890) {
    if (const RecentRange* recent = find_range(recent_table(), code_point)) return recent->category;
  }
  return static_cast<GeneralCategory>(utf8proc_category(static_cast<utf8proc_int32_t>(code_point)));
}

std::span<const CodePointRange> white_space_ranges() {
  static constexpr CodePointRange kRanges[] = {
      {0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
      {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}};
  return kRanges;
}

bool is_white_space(char32_t code_point) {
  return in_ranges(white_space_ranges(), code_point);
}

bool is_rust_word(char32_t code_point) {
  // Rust leaves out the superscripts and fractions of Latin-1, and has the two joiners.
  if (code_point == 0x200C || code_point == 0x200D) return true;
  return in_mask(code_point, kWordMask) || (code_point > 0xFF && in_ranges(word_extra(), code_point));
}

bool is_numeric(char32_t code_point) {
  // The two ranges are of Unicode 17, which Rust's standard library has.
  if ((code_point >= 0x11DE0 && code_point <= 0x11DE9) || (code_point >= 0x16FF4 && code_point <= 0x16FF6))
    return true;
  return in_mask(code_point, kNumberMask);
}

bool is_punctuation(char32_t code_point) {
  if (code_point < 0x80) {
    return code_point > 0x20 && code_point < 0x7F && !(code_point >= '0' && code_point <= '9') &&
           !((code_point | 0x20) >= 'a' && (code_point | 0x20) <= 'z');
  }
  // U+166D was punctuation once, U+111C9 then and no longer.
  if (code_point == 0x166D || code_point == 0x111C9) return true;
  return in_mask(code_point, kPunctuationMask) && !in_ranges(recent_punctuation(), code_point);
}

bool is_accent(char32_t code_point) {
  if (code_point < 0x300) return false;
  if (code_point == 0x1CF2 || code_point == 0x1CF3)
    return true;  // non-spacing marks in Unicode 9, letters later
  return in_mask(code_point, kMarkMask) && !in_ranges(recent_marks(), code_point);
}

void append_lowercase(std::string& out, char32_t code_point) {
  struct Mapping {
    char32_t first, last, to;
  };
  // Letters younger than Unicode 14 or that got a lower case since.
  static constexpr Mapping kRecent[] = {{0x1C89, 0x1C89, 0x1C8A},    {0xA7CB, 0xA7CB, 0x264},
                                        {0xA7CC, 0xA7CC, 0xA7CD},    {0xA7CE, 0xA7CE, 0xA7CF},
                                        {0xA7D2, 0xA7D2, 0xA7D3},    {0xA7D4, 0xA7D4, 0xA7D5},
                                        {0xA7DA, 0xA7DA, 0xA7DB},    {0xA7DC, 0xA7DC, 0x19B},
                                        {0x10D50, 0x10D65, 0x10D70}, {0x16EA0, 0x16EB8, 0x16EBB}};
  for (const Mapping& mapping : kRecent) {
    if (code_point >= mapping.first && code_point <= mapping.last) {
      return append_utf8(out, mapping.to + (code_point - mapping.first));
    }
  }
  if (code_point == 0x130) {  // the one character whose lower case is two
    append_utf8(out, 'i');
    return append_utf8(out, 0x307);
  }
  append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code_point))));
}

CodePointSet set_of_categories(CategoryMask mask) {
  CodePointSet set;
  for (char32_t code_point = 0; code_point <= kLastCodePoint; ++code_point) {
    if (!in_mask(code_point, mask)) continue;
    if (!set.empty() && set.back().last + 1 == code_point) {
      set.back().last = code_point;
    } else {
      set.push_back({code_point, code_point});
    }
  }
  return set;
}

CodePointSet set_of_ranges(CodePointSet ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  CodePointSet joined;
  for (const CodePointRange& range : ranges) {
    if (!joined.empty() && range.first <= joined.back().last + 1) {
      joined.back().last = std::max(joined.back().last, range.last);
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

CodePointSet set_complement(const CodePointSet& set) {
  CodePointSet result;
  char32_t next = 0;
  for (const CodePointRange& range : set) {
    if (range.first > next) result.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCodePoint) result.push_back({next, kLastCodePoint});
  return result;
}

CodePointSet set_union(const CodePointSet& a, const CodePointSet& b) {
  CodePointSet both = a;
  both.insert(both.end(), b.begin(), b.end());
  return set_of_ranges(std::move(both));
}

CodePointSet set_intersection(const CodePointSet& a, const CodePointSet& b) {
  return set_complement(set_union(set_complement(a), set_complement(b)));
}

}  // namespace kvcal::formats
