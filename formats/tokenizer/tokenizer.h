// formats/tokenizer/tokenizer.h: text to token ids, with the tokenizer that lies in a model's folder.
//
// tokenizer.json (byte-pair encoding, byte-level or SentencePiece-style) gives the ids that PyPI's
// `tokenizers` gives; tokenizer.model goes through the sentencepiece library. A part of tokenizer.json that
// is not known here is refused by name, never skipped: a slightly wrong tokenizer would go unnoticed.
// Truncation and padding settings do not apply.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvcal::formats {

struct EncodeOptions {
  /// Special tokens that are spelt out in the text become their ids; else they are text. Added tokens that
  /// are not special (runs of spaces, say) belong to the vocabulary and are found either way.
  bool parse_special = true;
};

/// What a tokenizer knows beside its vocabulary.
struct TokenizerTraits {
  std::optional<std::int32_t> bos_id;
  bool adds_bos = false;
  bool has_chat_template = false;
  std::vector<std::int32_t> special_ids;  ///< ascending
};

/// Any number of threads may encode with one object.
class Tokenizer {
 public:
  virtual ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  /// The ids of a text, without the BOS or EOS that a post-processor would add. Throws InvalidInput naming
  /// the first byte that is not UTF-8 (decode_utf8_lossy mends that), or a character that the vocabulary
  /// can't express.
  [[nodiscard]] virtual std::vector<std::int32_t> encode(std::string_view text,
                                                         const EncodeOptions& options) const = 0;

  /// One more than the largest id.
  [[nodiscard]] virtual std::int32_t vocab_size() const = 0;

  /// The token that begins a text, where one is known: from the post-processor of tokenizer.json, else
  /// bos_token of tokenizer_config.json, else the model file's own (tokenizer.model), else bos_token_id of
  /// config.json.
  [[nodiscard]] const std::optional<std::int32_t>& bos_id() const { return traits_.bos_id; }
  /// Whether the tokenizer itself puts it there: the post-processor of tokenizer.json decides; where it has
  /// none, add_bos_token of tokenizer_config.json; for tokenizer.model alone the default is that of Llama's
  /// tokenizers, true.
  [[nodiscard]] bool adds_bos() const { return traits_.adds_bos; }
  /// Whether a chat template lies in the folder: in tokenizer_config.json, chat_template.jinja or
  /// chat_template.json.
  [[nodiscard]] bool has_chat_template() const { return traits_.has_chat_template; }
  [[nodiscard]] const std::vector<std::int32_t>& special_ids() const { return traits_.special_ids; }

 protected:
  Tokenizer() = default;
  TokenizerTraits traits_;
};

/// The tokenizer of a folder: tokenizer.json before tokenizer.model. Throws InvalidInput naming the file, the
/// part of it and the way out (--tokens), SystemError where a file can't be read.
[[nodiscard]] std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder);

/// A text, and how many times bytes that are not UTF-8 were replaced by U+FFFD in it.
struct DecodedText {
  std::string text;
  std::int64_t replaced = 0;
};

/// As Python's bytes.decode("utf-8", errors="replace").
[[nodiscard]] DecodedText decode_utf8_lossy(std::span<const std::byte> bytes);

}  // namespace kvcal::formats
