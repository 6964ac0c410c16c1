#include "formats/tokenizer/internal/oniguruma_unicode.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <iterator>
#include <span>
#include <string_view>
#include <vector>

#include "formats/tokenizer/internal/unicode.h"

namespace kvcal::formats {
namespace {

/// A property whose members since the library's Unicode are those of some categories, and some ranges more.
struct Property {
  std::string_view name;
  CategoryMask recent;
  std::initializer_list<CodePointRange> more;
};

const CategoryMask kLetters = category_mask("L") | category_mask("Nl");
const CategoryMask kWord = kLetters | category_mask("M") | category_mask("Nd") | category_mask("Pc");
const CategoryMask kAssigned = category_mask("Any") & ~category_mask("Cn");

// clang-format off
constexpr std::initializer_list<CodePointRange> kAlphabeticMarks = {
    {0x363, 0x36F}, {0x897, 0x897}, {0xC04, 0xC04}, {0xCF3, 0xCF3}, {0xF82, 0xF83}, {0x1DD3, 0x1DE6},
    {0x10D69, 0x10D69}, {0x10EFC, 0x10EFC}, {0x11080, 0x11081}, {0x11241, 0x11241}, {0x113B8, 0x113C0},
    {0x113C2, 0x113C2}, {0x113C5, 0x113C5}, {0x113C7, 0x113CA}, {0x113CC, 0x113CD}, {0x11F00, 0x11F01},
    {0x1171E, 0x1171E}, {0x11F03, 0x11F03}, {0x11F34, 0x11F3A}, {0x11F3E, 0x11F40}, {0x1611E, 0x1612E}, {0x1E08F, 0x1E08F}};
constexpr std::initializer_list<CodePointRange> kSmallModifiers = {
    {0x10FC, 0x10FC}, {0xA7F2, 0xA7F4}, {0xAB69, 0xAB69}, {0x1E030, 0x1E06D}};
constexpr std::initializer_list<CodePointRange> kJoiners = {
    {0x200C, 0x200D}, {0x30FB, 0x30FB}, {0xFF65, 0xFF65}};
constexpr std::initializer_list<CodePointRange> kCommon = {
    {0x2427, 0x2429}, {0x2FFC, 0x2FFF}, {0x31E4, 0x31E5}, {0x31EF, 0x31EF}, {0x1CC00, 0x1CCF9},
    {0x1CD00, 0x1CEB3}, {0x1D2C0, 0x1D2D3}, {0x1F6DC, 0x1F6DC}, {0x1F774, 0x1F776}, {0x1F77B, 0x1F77F},
    {0x1F7D9, 0x1F7D9}, {0x1F8B2, 0x1F8BB}, {0x1F8C0, 0x1F8C1}, {0x1FA75, 0x1FA77}, {0x1FA87, 0x1FA89},
    {0x1FA8F, 0x1FA8F}, {0x1FAAD, 0x1FAAF}, {0x1FABB, 0x1FABF}, {0x1FAC6, 0x1FAC6}, {0x1FACE, 0x1FACF},
    {0x1FADA, 0x1FADC}, {0x1FADF, 0x1FADF}, {0x1FAE8, 0x1FAE9}, {0x1FAF7, 0x1FAF8}, {0x1FBCB, 0x1FBEF}};
// clang-format on

const Property kProperties[] = {
    {"alpha", kLetters, kAlphabeticMarks},
    {"alphabetic", kLetters, kAlphabeticMarks},
    {"alnum", kLetters | category_mask("Nd"), kAlphabeticMarks},
    {"lower", category_mask("Ll"), kSmallModifiers},
    {"lowercase", category_mask("Ll"), kSmallModifiers},
    {"upper", category_mask("Lu"), {}},
    {"uppercase", category_mask("Lu"), {}},
    {"digit", category_mask("Nd"), {}},
    {"graph", kAssigned, {}},
    {"print", kAssigned, {}},
    {"word", kWord, {}},
    {"assigned", kAssigned, {}},
    {"unknown", 0, {}},
    {"math", category_mask("Sm"), {}},
    {"idstart", kLetters, {}},
    {"xidstart", kLetters, {}},
    {"idcontinue", kWord, kJoiners},
    {"xidcontinue", kWord, kJoiners},
    {"ideographic", 0, {{0x18CFF, 0x18CFF}, {0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF}}},
    {"unifiedideograph", 0, {{0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF}}},
    {"arabic", 0, {{0x897, 0x897}, {0x10EC2, 0x10EC4}, {0x10EFC, 0x10EFF}}},
    {"balinese", 0, {{0x1B4E, 0x1B4F}, {0x1B7F, 0x1B7F}}},
    {"common", 0, kCommon},
    {"cyrillic", 0, {{0x1C89, 0x1C8A}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F}}},
    {"devanagari", 0, {{0x11B00, 0x11B09}}},
    {"egyptianhieroglyphs", 0, {{0x1342F, 0x1342F}, {0x13439, 0x13455}, {0x13460, 0x143FA}}},
    {"han", 0, {{0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF}}},
    {"hiragana", 0, {{0x1B132, 0x1B132}}},
    {"kannada", 0, {{0xCF3, 0xCF3}}},
    {"katakana", 0, {{0x1B155, 0x1B155}}},
    {"khitansmallscript", 0, {{0x18CFF, 0x18CFF}}},
    {"khojki", 0, {{0x1123F, 0x11241}}},
    {"lao", 0, {{0xECE, 0xECE}}},
    {"latin", 0, {{0xA7CB, 0xA7CD}, {0xA7DA, 0xA7DC}, {0x1DF25, 0x1DF2A}}},
    {"myanmar", 0, {{0x116D0, 0x116E3}}},
};

constexpr std::string_view kRefused[] = {"cased",
                                         "caseignorable",
                                         "changeswhencasefolded",
                                         "changeswhencasemapped",
                                         "changeswhenlowercased",
                                         "changeswhentitlecased",
                                         "changeswhenuppercased",
                                         "dash",
                                         "diacritic",
                                         "emoji",
                                         "emojimodifierbase",
                                         "emojipresentation",
                                         "extender",
                                         "graphemebase",
                                         "graphemeextend",
                                         "graphemelink",
                                         "idsbinaryoperator",
                                         "inegyptianhieroglyphformatcontrols",
                                         "innoblock",
                                         "otheralphabetic",
                                         "othergraphemeextend",
                                         "otheridcontinue",
                                         "otherlowercase",
                                         "sentenceterminal",
                                         "softdotted",
                                         "terminalpunctuation"};

/// A capital and its small letter, younger than the library's case folding; last - first more of them follow.
struct CasePair {
  OnigCodePoint first, last, small;
};
constexpr CasePair kRecentCases[] = {{0x1C89, 0x1C89, 0x1C8A}, {0xA7CB, 0xA7CB, 0x264},
                                     {0xA7CC, 0xA7CC, 0xA7CD}, {0xA7DA, 0xA7DA, 0xA7DB},
                                     {0xA7DC, 0xA7DC, 0x19B},  {0x10D50, 0x10D65, 0x10D70}};

OnigEncoding library() {
  return ONIG_ENCODING_UTF8;
}

int library_ctype(std::string_view name) {
  const auto* begin = reinterpret_cast<const OnigUChar*>(name.data());
  // Oniguruma's own reads them without writing.
  return library()->property_name_to_ctype(library(), const_cast<OnigUChar*>(begin),
                                           const_cast<OnigUChar*>(begin + name.size()));
}

/// Members in Oniguruma's form (how many ranges, then their ends) by ctype; empty where the library's hold.
class Members {
 public:
  Members() {
    static constexpr std::string_view kCategories[] = {"L",  "LC", "M",  "N",  "P",  "S",  "Z",  "C",  "Cn",
                                                       "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd",
                                                       "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
                                                       "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf"};
    for (const std::string_view name : kCategories) add({name, category_mask(name), {}});
    for (const Property& property : kProperties) add(property);
    store(ONIGENC_CTYPE_PUNCT, set_of_categories(category_mask("P") | category_mask("S")));
    for (const std::string_view name : kRefused) {
      if (const int ctype = library_ctype(name); ctype >= 0) refused_.push_back(ctype);
    }
  }

  [[nodiscard]] const std::vector<OnigCodePoint>* find(OnigCtype ctype) const {
    return ctype < members_.size() && !members_[ctype].empty() ? &members_[ctype] : nullptr;
  }
  [[nodiscard]] bool is_refused(int ctype) const {
    return std::find(refused_.begin(), refused_.end(), ctype) != refused_.end();
  }

 private:
  void add(const Property& property) {
    const int ctype = library_ctype(property.name);
    if (ctype < 0) return;
    OnigCodePoint single_bytes = 0;
    const OnigCodePoint* ranges = nullptr;
    if (library()->get_ctype_code_range(static_cast<OnigCtype>(ctype), &single_bytes, &ranges) != 0) return;
    CodePointSet old;
    for (int i = 0; i < ONIGENC_CODE_RANGE_NUM(ranges); ++i)
      old.push_back({ONIGENC_CODE_RANGE_FROM(ranges, i), ONIGENC_CODE_RANGE_TO(ranges, i)});
    CodePointSet changed;
    CodePointSet members(property.more);
    for (const RecentRange& recent : recent_ranges()) {
      changed.push_back({recent.first, recent.last});
      if ((mask_of(recent.category) & property.recent) != 0) members.push_back({recent.first, recent.last});
    }
    old = set_intersection(set_of_ranges(std::move(old)), set_complement(set_of_ranges(std::move(changed))));
    store(static_cast<std::size_t>(ctype), set_union(old, members));
  }

  void store(std::size_t ctype, const CodePointSet& set) {
    if (members_.size() <= ctype) members_.resize(ctype + 1);
    std::vector<OnigCodePoint>& out = members_[ctype];
    out.push_back(static_cast<OnigCodePoint>(set.size()));
    for (const CodePointRange& range : set) out.insert(out.end(), {range.first, range.last});
  }

  std::vector<std::vector<OnigCodePoint>> members_;
  std::vector<int> refused_;
};

const Members& members() {
  static const Members kMembers;
  return kMembers;
}

int name_to_ctype(OnigEncoding encoding, OnigUChar* begin, OnigUChar* end) {
  int ctype = library()->property_name_to_ctype(encoding, begin, end);
  // Symbols belong to [[:punct:]], which asks for the type itself, and not to \p{punct}.
  if (ctype == ONIGENC_CTYPE_PUNCT) ctype = library_ctype("P");
  return ctype >= 0 && members().is_refused(ctype) ? ONIGERR_INVALID_CHAR_PROPERTY_NAME : ctype;
}

int is_code_ctype(OnigCodePoint code, OnigCtype ctype) {
  // Of Latin-1 the library has a table of its own for \w and the like, which differs from its ranges.
  const bool of_library = code < 0x100 && ctype != ONIGENC_CTYPE_PUNCT;
  const std::vector<OnigCodePoint>* ranges = of_library ? nullptr : members().find(ctype);
  if (ranges == nullptr) return library()->is_code_ctype(code, ctype);
  // Behind the count, ends of ranges: code is a member where the first end that is not below it closes a
  // range, or is it.
  const auto first = ranges->begin() + 1;
  const auto at = std::lower_bound(first, ranges->end(), code);
  if (at == ranges->end()) return 0;
  return *at == code || (at - first) % 2 == 1 ? 1 : 0;
}

int ctype_code_range(OnigCtype ctype, OnigCodePoint* single_bytes, const OnigCodePoint** ranges) {
  const int code = library()->get_ctype_code_range(ctype, single_bytes, ranges);
  if (const std::vector<OnigCodePoint>* found = members().find(ctype)) *ranges = found->data();
  return code;
}

/// The other letter of a recent pair; 0 where there is none. Small letters are told by `small`.
OnigCodePoint other_case(OnigCodePoint code, bool& small) {
  for (const CasePair& pair : kRecentCases) {
    const OnigCodePoint count = pair.last - pair.first;
    small = code >= pair.small && code <= pair.small + count;
    if (small) return code - pair.small + pair.first;
    if (code >= pair.first && code <= pair.last) return code - pair.first + pair.small;
  }
  return 0;
}

int mbc_case_fold(OnigCaseFoldType flag, const OnigUChar** at, const OnigUChar* end, OnigUChar* to) {
  bool small = false;
  const OnigCodePoint other = other_case(library()->mbc_to_code(*at, end), small);
  if (other == 0 || small) return library()->mbc_case_fold(flag, at, end, to);
  *at += library()->mbc_enc_len(*at);
  return library()->code_to_mbc(other, to);
}

int apply_all_case_fold(OnigCaseFoldType flag, OnigApplyAllCaseFoldFunc apply, void* argument) {
  if (const int code = library()->apply_all_case_fold(flag, apply, argument); code != 0) return code;
  for (const CasePair& pair : kRecentCases) {
    for (OnigCodePoint i = 0; i <= pair.last - pair.first; ++i) {
      OnigCodePoint large = pair.first + i;
      OnigCodePoint small = pair.small + i;
      if (const int code = apply(small, &large, 1, argument); code != 0) return code;
      if (const int code = apply(large, &small, 1, argument); code != 0) return code;
    }
  }
  return 0;
}

int case_fold_codes(OnigCaseFoldType flag, const OnigUChar* at, const OnigUChar* end,
                    OnigCaseFoldCodeItem* items) {
  bool small = false;
  const OnigCodePoint other = other_case(library()->mbc_to_code(at, end), small);
  if (other == 0) return library()->get_case_fold_codes_by_str(flag, at, end, items);
  items[0].byte_len = library()->mbc_enc_len(at);
  items[0].code_len = 1;
  items[0].code[0] = other;
  return 1;
}

}  // namespace

OnigEncoding reference_utf8() {
  static OnigEncodingType encoding = [] {
    OnigEncodingType made = *library();
    made.property_name_to_ctype = name_to_ctype;
    made.is_code_ctype = is_code_ctype;
    made.get_ctype_code_range = ctype_code_range;
    made.mbc_case_fold = mbc_case_fold;
    made.apply_all_case_fold = apply_all_case_fold;
    made.get_case_fold_codes_by_str = case_fold_codes;
    return made;
  }();
  return &encoding;
}

}  // namespace kvcal::formats
