// The sections "model", "added_tokens" and "post_processor" of tokenizer.json.
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "formats/tokenizer/internal/tokenizer_json.h"

namespace kvcal::formats {

using nlohmann::json;

namespace {

std::int32_t checked_id(const json& value, const JsonPlace& place) {
  if (!value.is_number_integer())
    refuse_tokenizer(place, base::concat("an id was expected, not a ", value.type_name()));
  if (value.is_number_unsigned() ? value.get<std::uint64_t>() >= INT32_MAX : true) {
    refuse_tokenizer(place, base::concat("the id ", value.dump(), " is negative or too large"));
  }
  return value.get<std::int32_t>();
}

std::vector<std::pair<std::string, std::int32_t>> read_vocab(const json& section, const JsonPlace& place) {
  const auto vocab = section.find("vocab");
  if (vocab == section.end() || !vocab->is_object()) refuse_tokenizer(place, "the object 'vocab' is missing");
  std::vector<std::pair<std::string, std::int32_t>> result;
  result.reserve(vocab->size());
  for (const auto& [token, id] : vocab->items()) {
    result.emplace_back(token, checked_id(id, place.inside("vocab").inside("'" + token + "'")));
  }
  return result;
}

/// "a b" or ["a", "b"].
std::vector<std::pair<std::string, std::string>> read_merges(const json& section, const JsonPlace& place) {
  std::vector<std::pair<std::string, std::string>> result;
  const json& merges = json_array(section, "merges", place);
  result.reserve(merges.size());
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const json& merge = merges[i];
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      if (text.starts_with("#version")) continue;
      const std::size_t space = text.find(' ');
      if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
        result.emplace_back(text.substr(0, space), text.substr(space + 1));
        continue;
      }
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      result.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    refuse_tokenizer(place.inside("merges").inside(i), "\"a b\" or [\"a\", \"b\"] was expected");
  }
  return result;
}

}  // namespace

BpeDescription read_bpe(const json& section, const JsonPlace& place) {
  if (!section.is_object()) refuse_tokenizer(place, "an object was expected");
  // Files of early versions don't name the type of a BPE.
  const std::string type = text_field(section, "type", place, section.contains("merges") ? "BPE" : "");
  if (type != "BPE")
    refuse_tokenizer(place, base::concat("the model type '", type, "' is not supported (BPE is)"));
  const auto dropout = section.find("dropout");
  if (dropout != section.end() && !dropout->is_null() &&
      !(dropout->is_number() && dropout->get<double>() == 0)) {
    refuse_tokenizer(place.inside("dropout"), "dropout makes ids random and is not supported");
  }
  BpeDescription model;
  model.vocab = read_vocab(section, place);
  model.merges = read_merges(section, place);
  if (section.contains("unk_token") && !section["unk_token"].is_null())
    model.unk_token = text_field(section, "unk_token", place);
  model.continuing_subword_prefix = text_field(section, "continuing_subword_prefix", place, "");
  model.end_of_word_suffix = text_field(section, "end_of_word_suffix", place, "");
  model.fuse_unk = json_flag(section, "fuse_unk", place, false);
  model.byte_fallback = json_flag(section, "byte_fallback", place, false);
  model.ignore_merges = json_flag(section, "ignore_merges", place, false);
  return model;
}

std::vector<AddedToken> read_added_tokens(const json& section, const JsonPlace& place) {
  std::vector<AddedToken> tokens;
  if (section.is_null()) return tokens;
  if (!section.is_array()) refuse_tokenizer(place, "an array was expected");
  std::unordered_map<std::int32_t, std::string> owners;
  for (std::size_t i = 0; i < section.size(); ++i) {
    const json& entry = section[i];
    const JsonPlace at = place.inside(i);
    AddedToken token;
    token.content = text_field(entry, "content", at);
    if (!entry.contains("id")) refuse_tokenizer(at, "the field 'id' is missing");
    token.id = checked_id(entry["id"], at.inside("id"));
    token.special = json_flag(entry, "special", at);
    token.normalized = json_flag(entry, "normalized", at);
    token.single_word = json_flag(entry, "single_word", at);
    token.lstrip = json_flag(entry, "lstrip", at);
    token.rstrip = json_flag(entry, "rstrip", at);
    const auto [owner, is_new] = owners.try_emplace(token.id, token.content);
    if (!is_new && owner->second != token.content) {
      refuse_tokenizer(
          at, base::concat("'", token.content, "' and '", owner->second, "' share the id ", token.id));
    }
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  return tokens;
}

namespace {

TextStart read_template(const json& section, const JsonPlace& place) {
  TextStart start{true, std::nullopt};
  const json& single = json_array(section, "single", place);
  if (single.empty() || !single[0].is_object() || !single[0].contains("SpecialToken")) return start;
  const JsonPlace at = place.inside("single").inside(std::size_t{0}).inside("SpecialToken");
  const std::string name = text_field(single[0]["SpecialToken"], "id", at);
  const JsonPlace named = place.inside("special_tokens").inside(name);
  const auto tokens = section.find("special_tokens");
  if (tokens == section.end() || !tokens->is_object() || !tokens->contains(name))
    refuse_tokenizer(named, "it is missing");
  const json& ids = json_array((*tokens)[name], "ids", named);
  if (ids.empty()) refuse_tokenizer(named.inside("ids"), "it is empty");
  start.first = checked_id(ids[0], named.inside("ids").inside(std::size_t{0}));
  return start;
}

TextStart read_postprocessor(const json& section, const JsonPlace& place, int depth) {
  if (section.is_null()) return {};
  if (depth > 32) refuse_tokenizer(place, "sequences nested too deep");
  const std::string type = text_field(section, "type", place);
  if (type == "ByteLevel") return {};
  if (type == "TemplateProcessing") return read_template(section, place);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    const json& cls = json_array(section, "cls", place);
    if (cls.size() != 2) refuse_tokenizer(place.inside("cls"), "[token, id] was expected");
    return {true, checked_id(cls[1], place.inside("cls").inside(std::size_t{1}))};
  }
  if (type != "Sequence")
    refuse_tokenizer(place, base::concat("the post-processor '", type, "' is not supported"));
  TextStart start;
  const json& parts = json_array(section, "processors", place);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    // A later processor puts its token before that of an earlier one.
    const TextStart part = read_postprocessor(parts[i], place.inside("processors").inside(i), depth + 1);
    start.decides = start.decides || part.decides;
    if (part.first) start.first = part.first;
  }
  return start;
}

}  // namespace

TextStart read_postprocessor(const json& section, const JsonPlace& place) {
  return read_postprocessor(section, place, 0);
}

}  // namespace kvcal::formats
