// Fields of JSON objects, checked, and the small files beside the tokenizer.
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "formats/json.h"
#include "formats/tokenizer/internal/tokenizer_json.h"

namespace kvcal::formats {

using nlohmann::json;

JsonPlace JsonPlace::inside(std::string_view name) const {
  return {file, path.empty() ? std::string(name) : base::concat(path, ".", name)};
}

JsonPlace JsonPlace::inside(std::size_t index) const {
  return {file, base::concat(path, "[", index, "]")};
}

void refuse_tokenizer(const JsonPlace& place, std::string_view problem) {
  throw base::InvalidInput(base::concat(place.file, place.path.empty() ? "" : ": ", place.path, ": ", problem,
                                        "; tokenise elsewhere and give the ids with --tokens FILE.npy"));
}

namespace {

const json* find_field(const json& object, std::string_view name, const JsonPlace& place) {
  if (!object.is_object())
    refuse_tokenizer(place, base::concat("an object was expected, not a ", object.type_name()));
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

}  // namespace

std::string text_field(const json& object, std::string_view name, const JsonPlace& place,
                       std::optional<std::string> fallback) {
  const json* field = find_field(object, name, place);
  if (field == nullptr && fallback) return *std::move(fallback);
  if (field == nullptr) refuse_tokenizer(place, base::concat("the field '", name, "' is missing"));
  if (!field->is_string())
    refuse_tokenizer(place.inside(name), base::concat("a string was expected, not a ", field->type_name()));
  return field->get<std::string>();
}

bool json_flag(const json& object, std::string_view name, const JsonPlace& place,
               std::optional<bool> fallback) {
  const json* field = find_field(object, name, place);
  if (field == nullptr && fallback) return *fallback;
  if (field == nullptr) refuse_tokenizer(place, base::concat("the field '", name, "' is missing"));
  if (!field->is_boolean()) {
    refuse_tokenizer(place.inside(name),
                     base::concat("true or false was expected, not a ", field->type_name()));
  }
  return field->get<bool>();
}

const json& json_array(const json& object, std::string_view name, const JsonPlace& place) {
  const json* field = find_field(object, name, place);
  if (field == nullptr) refuse_tokenizer(place, base::concat("the field '", name, "' is missing"));
  if (!field->is_array())
    refuse_tokenizer(place.inside(name), base::concat("an array was expected, not a ", field->type_name()));
  return *field;
}

TokenizerConfig read_tokenizer_config(const std::filesystem::path& folder) {
  TokenizerConfig result;
  result.has_chat_template = std::filesystem::exists(folder / "chat_template.jinja") ||
                             std::filesystem::exists(folder / "chat_template.json");
  if (const auto path = folder / "tokenizer_config.json"; std::filesystem::exists(path)) {
    const json config = read_json_file(path);
    const JsonPlace place{path.string(), ""};
    const auto bos = config.is_object() ? config.find("bos_token") : config.end();
    if (bos != config.end() && bos->is_object()) {
      result.bos_token = text_field(*bos, "content", place.inside("bos_token"));
    } else {
      result.bos_token = text_field(config, "bos_token", place, "");
    }
    if (config.contains("add_bos_token") && !config["add_bos_token"].is_null()) {
      result.adds_bos = json_flag(config, "add_bos_token", place);
    }
    if (config.contains("chat_template") && !config["chat_template"].is_null())
      result.has_chat_template = true;
  }
  if (const auto path = folder / "config.json"; std::filesystem::exists(path)) {
    const json config = read_json_file(path);
    // It may be a list, of which any will do, or null; whoever reads the model checks this file.
    if (config.is_object() && config.contains("bos_token_id")) {
      json id = config["bos_token_id"];
      if (id.is_array() && !id.empty()) id = json(id.front());
      if (id.is_number_unsigned() && id.get<std::uint64_t>() <= INT32_MAX)
        result.config_bos_id = id.get<std::int32_t>();
    }
  }
  return result;
}

}  // namespace kvcal::formats
