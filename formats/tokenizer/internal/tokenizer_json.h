// formats/tokenizer/internal/tokenizer_json.h: reading tokenizer.json.
// Private to formats: it exposes the JSON library.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "formats/tokenizer/internal/bpe.h"
#include "formats/tokenizer/internal/normalizer.h"
#include "formats/tokenizer/internal/pretokenizer.h"
#include "formats/tokenizer/internal/tokenizer_added.h"
#include "formats/tokenizer/tokenizer.h"

namespace kvcal::formats {

/// Where a part of the file stands, for messages: the file, and "pre_tokenizer.pretokenizers[1]".
struct JsonPlace {
  std::string file;
  std::string path;
  [[nodiscard]] JsonPlace inside(std::string_view name) const;
  [[nodiscard]] JsonPlace inside(std::size_t index) const;
};

/// Throws InvalidInput: the place, the problem, and --tokens as the way out.
[[noreturn]] void refuse_tokenizer(const JsonPlace& place, std::string_view problem);

/// The value of a field; throws InvalidInput naming it where it is missing (no fallback) or of another type.
/// null is missing.
[[nodiscard]] std::string text_field(const nlohmann::json& object, std::string_view name,
                                     const JsonPlace& place,
                                     std::optional<std::string> fallback = std::nullopt);
[[nodiscard]] bool json_flag(const nlohmann::json& object, std::string_view name, const JsonPlace& place,
                             std::optional<bool> fallback = std::nullopt);
[[nodiscard]] const nlohmann::json& json_array(const nlohmann::json& object, std::string_view name,
                                               const JsonPlace& place);

/// The component sections. `section` may be null: nothing to do.
[[nodiscard]] Normalizer read_normalizer(const nlohmann::json& section, const JsonPlace& place);
[[nodiscard]] PreTokenizer read_pretokenizer(const nlohmann::json& section, const JsonPlace& place);
[[nodiscard]] BpeDescription read_bpe(const nlohmann::json& section, const JsonPlace& place);
[[nodiscard]] std::vector<AddedToken> read_added_tokens(const nlohmann::json& section,
                                                        const JsonPlace& place);

/// What the post-processor says of the start of a text.
struct TextStart {
  bool decides = false;               ///< it is of a kind that could add a token
  std::optional<std::int32_t> first;  ///< the id that it puts first
};
[[nodiscard]] TextStart read_postprocessor(const nlohmann::json& section, const JsonPlace& place);

[[nodiscard]] std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& folder);
[[nodiscard]] std::unique_ptr<Tokenizer> load_tokenizer_model(const std::filesystem::path& folder);

/// What the files beside the tokenizer say; each may be missing.
struct TokenizerConfig {
  std::string bos_token;
  std::optional<bool> adds_bos;
  bool has_chat_template = false;
  std::optional<std::int32_t> config_bos_id;  ///< bos_token_id of config.json
};
[[nodiscard]] TokenizerConfig read_tokenizer_config(const std::filesystem::path& folder);

}  // namespace kvcal::formats
