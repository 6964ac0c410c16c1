#include "formats/tokenizer/internal/tokenizer_json.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "formats/json.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {

using nlohmann::json;

namespace {

/// The ids that the reference gives to added tokens: that of the vocabulary where the token is in it, else
/// the next free one. The ids that the file declares are a record of that; where they differ, the reference
/// goes its own way, and so do we.
class AddedIds {
 public:
  explicit AddedIds(const Bpe& model) : model_(model) {}

  std::int32_t id_of(const std::string& content) {
    if (const auto known = added_.find(content); known != added_.end()) return known->second;
    if (const auto id = model_.id_of(content)) return *id;
    const auto size = static_cast<std::int32_t>(model_.size());
    const std::int32_t id = largest_ >= size ? largest_ + 1 : size;
    largest_ = std::max(largest_, id);
    added_.emplace(content, id);
    return id;
  }

 private:
  const Bpe& model_;
  std::int32_t largest_ = -1;
  std::unordered_map<std::string, std::int32_t> added_;
};

class JsonTokenizer final : public Tokenizer {
 public:
  JsonTokenizer(const json& file, const JsonPlace& place, const TokenizerConfig& config)
      : model_(make_model(section(file, "model"), place.inside("model"))),
        normalizer_(read_normalizer(section(file, "normalizer"), place.inside("normalizer"))),
        pretokenizer_(read_pretokenizer(section(file, "pre_tokenizer"), place.inside("pre_tokenizer"))),
        largest_id_(model_.largest_id()) {
    add_tokens(read_added_tokens(section(file, "added_tokens"), place.inside("added_tokens")));
    const TextStart start =
        read_postprocessor(section(file, "post_processor"), place.inside("post_processor"));
    traits_.has_chat_template = config.has_chat_template;
    traits_.bos_id = start.first;
    if (!traits_.bos_id && !config.bos_token.empty()) traits_.bos_id = id_of(config.bos_token);
    if (!traits_.bos_id) traits_.bos_id = config.config_bos_id;
    traits_.adds_bos = start.decides ? start.first.has_value()
                                     : config.adds_bos.value_or(false) && traits_.bos_id.has_value();
    largest_id_ = std::max(largest_id_, start.first.value_or(-1));
  }

  [[nodiscard]] std::int32_t vocab_size() const override { return largest_id_ + 1; }

  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 const EncodeOptions& options) const override {
    if (const auto offset = first_invalid_utf8(text)) {
      throw base::InvalidInput(
          base::concat("the text is not UTF-8 at byte ", *offset, "; decode it with replacement first"));
    }
    std::vector<std::int32_t> ids;
    Bpe::Cache cache;
    for (const AddedSpan& span : raw_tokens_.find(text, options.parse_special)) {
      if (span.id >= 0) {
        ids.push_back(span.id);
      } else {
        encode_stretch(text.substr(span.begin, span.end - span.begin), span.begin == 0, options, ids, cache);
      }
    }
    return ids;
  }

 private:
  static const json& section(const json& file, const char* name) {
    static const json kNull;
    const auto found = file.find(name);
    return found == file.end() ? kNull : *found;
  }

  static Bpe make_model(const json& section, const JsonPlace& place) {
    const BpeDescription description = read_bpe(section, place);
    try {
      return Bpe(description);
    } catch (const base::InvalidInput& error) {
      refuse_tokenizer(place, error.what());
    }
  }

  void add_tokens(std::vector<AddedToken> tokens) {
    AddedIds ids(model_);
    for (AddedToken& token : tokens) token.id = ids.id_of(token.content);
    // Where two have one pattern, the reference prefers those that are not special.
    std::stable_partition(tokens.begin(), tokens.end(),
                          [](const AddedToken& token) { return token.special; });
    for (AddedToken& token : tokens) {
      largest_id_ = std::max(largest_id_, token.id);
      added_ids_[token.content] = token.id;
      if (token.special) traits_.special_ids.push_back(token.id);
      if (token.normalized) {
        NormalizedText pattern{token.content, true};
        normalizer_.apply(pattern);
        normalized_tokens_.add(pattern.text, token);
      } else {
        raw_tokens_.add(token.content, token);
      }
    }
    std::vector<std::int32_t>& special = traits_.special_ids;
    std::sort(special.begin(), special.end());
    special.erase(std::unique(special.begin(), special.end()), special.end());
  }

  [[nodiscard]] std::optional<std::int32_t> id_of(const std::string& token) const {
    const auto added = added_ids_.find(token);
    return added != added_ids_.end() ? added->second : model_.id_of(token);
  }

  /// A stretch of the raw text without added tokens that are looked for there.
  void encode_stretch(std::string_view raw, bool at_origin, const EncodeOptions& options,
                      std::vector<std::int32_t>& ids, Bpe::Cache& cache) const {
    NormalizedText text{std::string(raw), at_origin};
    normalizer_.apply(text);
    std::vector<TextPiece> pieces;
    for (const AddedSpan& span : normalized_tokens_.find(text.text, options.parse_special)) {
      if (span.id >= 0) {
        ids.push_back(span.id);
        continue;
      }
      pieces.clear();
      pieces.push_back(
          {text.text.substr(span.begin, span.end - span.begin), text.at_origin && span.begin == 0});
      pretokenizer_.apply(pieces);
      for (const TextPiece& piece : pieces) model_.encode(piece.text, ids, cache);
    }
  }

  Bpe model_;
  Normalizer normalizer_;
  PreTokenizer pretokenizer_;
  AddedTokenMatcher raw_tokens_;
  AddedTokenMatcher normalized_tokens_;
  std::unordered_map<std::string, std::int32_t> added_ids_;
  std::int32_t largest_id_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  const json file = read_json_file(path);
  const JsonPlace place{path.string(), ""};
  if (!file.is_object()) refuse_tokenizer(place, "an object was expected");
  return std::make_unique<JsonTokenizer>(file, place, read_tokenizer_config(folder));
}

}  // namespace kvcal::formats
