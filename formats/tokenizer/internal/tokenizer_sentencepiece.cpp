// tokenizer.model, through the sentencepiece library.
#include <sentencepiece_processor.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "formats/tokenizer/internal/tokenizer_json.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

/// Special tokens (control symbols and the unknown token) are cut out first, as Hugging Face's Llama
/// tokenizer does, and each stretch between them is encoded by itself, with the model's own dummy prefix.
/// User-defined symbols are the library's business.
class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::filesystem::path& path, const TokenizerConfig& config)
      : path_(path.string()) {
    const base::MappedFile file(path);
    const auto bytes = file.bytes();
    if (bytes.empty()) refuse_tokenizer({path_, ""}, "the file is empty");
    const auto status =
        processor_.LoadFromSerializedProto({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    if (!status.ok())
      refuse_tokenizer({path_, ""}, base::concat("it is not a SentencePiece model: ", status.ToString()));
    if (processor_.GetPieceSize() <= 0) refuse_tokenizer({path_, ""}, "the vocabulary is empty");
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (!processor_.IsControl(id) && !processor_.IsUnknown(id)) continue;
      traits_.special_ids.push_back(id);
      AddedToken token;
      token.content = processor_.IdToPiece(id);
      token.id = id;
      token.special = true;
      special_.add(token.content, token);
    }
    traits_.has_chat_template = config.has_chat_template;
    if (!config.bos_token.empty()) {
      const int id = processor_.PieceToId(config.bos_token);
      if (!processor_.IsUnknown(id) || config.bos_token == processor_.IdToPiece(id)) traits_.bos_id = id;
    }
    if (!traits_.bos_id && processor_.bos_id() >= 0) traits_.bos_id = processor_.bos_id();
    if (!traits_.bos_id) traits_.bos_id = config.config_bos_id;
    traits_.adds_bos = config.adds_bos.value_or(true) && traits_.bos_id.has_value();
  }

  [[nodiscard]] std::int32_t vocab_size() const override { return processor_.GetPieceSize(); }

  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 const EncodeOptions& options) const override {
    if (const auto offset = first_invalid_utf8(text)) {
      throw base::InvalidInput(
          base::concat("the text is not UTF-8 at byte ", *offset, "; decode it with replacement first"));
    }
    std::vector<std::int32_t> ids;
    for (const AddedSpan& span : special_.find(text, options.parse_special)) {
      if (span.id >= 0) {
        ids.push_back(span.id);
        continue;
      }
      std::vector<int> part;
      const auto status = processor_.Encode({text.data() + span.begin, span.end - span.begin}, &part);
      if (!status.ok())
        throw base::InvalidInput(base::concat(path_, " cannot encode a text: ", status.ToString()));
      ids.insert(ids.end(), part.begin(), part.end());
    }
    return ids;
  }

 private:
  std::string path_;
  sentencepiece::SentencePieceProcessor processor_;
  AddedTokenMatcher special_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_model(const std::filesystem::path& folder) {
  return std::make_unique<SentencePieceTokenizer>(folder / "tokenizer.model", read_tokenizer_config(folder));
}

}  // namespace kvcal::formats
