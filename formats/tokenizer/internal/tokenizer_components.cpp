// The sections "normalizer" and "pre_tokenizer" of tokenizer.json.
#include <utility>

#include "base/error.h"
#include "formats/tokenizer/internal/tokenizer_json.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {

using nlohmann::json;

namespace {

constexpr int kMostNesting = 32;

/// {"String": "..."} or {"Regex": "..."}.
TokenizerRegex read_pattern(const json& object, const JsonPlace& place) {
  const auto field = object.find("pattern");
  const JsonPlace at = place.inside("pattern");
  if (field == object.end() || !field->is_object() || field->size() != 1) {
    refuse_tokenizer(at, "{\"String\": ...} or {\"Regex\": ...} was expected");
  }
  const bool literal = field->contains("String");
  const std::string text = text_field(*field, literal ? "String" : "Regex", at);
  try {
    return literal ? TokenizerRegex::from_literal(text) : TokenizerRegex::from_oniguruma(text);
  } catch (const base::InvalidInput& error) {
    refuse_tokenizer(at, error.what());
  }
}

void check_depth(int depth, const JsonPlace& place) {
  if (depth > kMostNesting) refuse_tokenizer(place, "sequences nested too deep");
}

void add_normalizer(Normalizer& normalizer, const json& section, const JsonPlace& place, int depth) {
  check_depth(depth, place);
  const std::string type = text_field(section, "type", place);
  if (type == "Sequence") {
    const json& parts = json_array(section, "normalizers", place);
    const JsonPlace inside = place.inside("normalizers");
    for (std::size_t i = 0; i < parts.size(); ++i)
      add_normalizer(normalizer, parts[i], inside.inside(i), depth + 1);
  } else if (type == "NFC") {
    normalizer.add_form(NormalForm::kNfc);
  } else if (type == "NFD") {
    normalizer.add_form(NormalForm::kNfd);
  } else if (type == "NFKC") {
    normalizer.add_form(NormalForm::kNfkc);
  } else if (type == "NFKD") {
    normalizer.add_form(NormalForm::kNfkd);
  } else if (type == "Lowercase") {
    normalizer.add_lowercase();
  } else if (type == "StripAccents") {
    normalizer.add_strip_accents();
  } else if (type == "Strip") {
    const bool left = json_flag(section, "strip_left", place);
    normalizer.add_strip(left, json_flag(section, "strip_right", place));
  } else if (type == "Prepend") {
    normalizer.add_prepend(text_field(section, "prepend", place));
  } else if (type == "Replace") {
    normalizer.add_replace(read_pattern(section, place), text_field(section, "content", place));
  } else if (type == "ByteLevel") {
    normalizer.add_byte_level();
  } else {
    refuse_tokenizer(place, base::concat("the normalizer '", type, "' is not supported"));
  }
}

SplitBehavior read_behavior(const json& section, const JsonPlace& place,
                            std::optional<std::string> fallback) {
  const std::string name = text_field(section, "behavior", place, std::move(fallback));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  refuse_tokenizer(place.inside("behavior"), base::concat("'", name, "' is not supported"));
}

void add_metaspace(PreTokenizer& pretokenizer, const json& section, const JsonPlace& place) {
  const std::string mark = text_field(section, "replacement", place);
  if (mark.empty() || utf8_at(mark, 0).length != mark.size()) {
    refuse_tokenizer(place.inside("replacement"),
                     base::concat("one character was expected, not '", mark, "'"));
  }
  const std::string name = text_field(section, "prepend_scheme", place, "always");
  PrependScheme scheme = PrependScheme::kAlways;
  if (name == "first") {
    scheme = PrependScheme::kFirst;
  } else if (name == "never") {
    scheme = PrependScheme::kNever;
  } else if (name != "always") {
    refuse_tokenizer(place.inside("prepend_scheme"), base::concat("'", name, "' is not supported"));
  }
  // Files of older versions have this flag alone.
  if (!json_flag(section, "add_prefix_space", place, true)) {
    if (section.contains("prepend_scheme") && scheme != PrependScheme::kNever) {
      refuse_tokenizer(place, "add_prefix_space contradicts prepend_scheme");
    }
    scheme = PrependScheme::kNever;
  }
  pretokenizer.add_metaspace(mark, scheme, json_flag(section, "split", place, true));
}

void add_pretokenizer(PreTokenizer& pretokenizer, const json& section, const JsonPlace& place, int depth) {
  check_depth(depth, place);
  const std::string type = text_field(section, "type", place);
  if (type == "Sequence") {
    const json& parts = json_array(section, "pretokenizers", place);
    const JsonPlace inside = place.inside("pretokenizers");
    for (std::size_t i = 0; i < parts.size(); ++i)
      add_pretokenizer(pretokenizer, parts[i], inside.inside(i), depth + 1);
  } else if (type == "Split") {
    const SplitBehavior behavior = read_behavior(section, place, std::nullopt);
    pretokenizer.add_split(read_pattern(section, place), behavior, json_flag(section, "invert", place));
  } else if (type == "ByteLevel") {
    const bool prefix = json_flag(section, "add_prefix_space", place);
    pretokenizer.add_byte_level(prefix, json_flag(section, "use_regex", place, true));
  } else if (type == "Metaspace") {
    add_metaspace(pretokenizer, section, place);
  } else if (type == "Digits") {
    pretokenizer.add_digits(json_flag(section, "individual_digits", place));
  } else if (type == "Punctuation") {
    pretokenizer.add_punctuation(read_behavior(section, place, "Isolated"));
  } else if (type == "Whitespace") {
    pretokenizer.add_whitespace();
  } else if (type == "WhitespaceSplit") {
    pretokenizer.add_whitespace_split();
  } else {
    refuse_tokenizer(place, base::concat("the pre-tokenizer '", type, "' is not supported"));
  }
}

}  // namespace

Normalizer read_normalizer(const json& section, const JsonPlace& place) {
  Normalizer normalizer;
  if (!section.is_null()) add_normalizer(normalizer, section, place, 0);
  return normalizer;
}

PreTokenizer read_pretokenizer(const json& section, const JsonPlace& place) {
  PreTokenizer pretokenizer;
  if (!section.is_null()) add_pretokenizer(pretokenizer, section, place, 0);
  return pretokenizer;
}

}  // namespace kvcal::formats
