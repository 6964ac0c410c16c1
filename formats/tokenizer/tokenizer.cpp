#include "formats/tokenizer/tokenizer.h"

#include "base/error.h"
#include "formats/tokenizer/internal/tokenizer_json.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {

Tokenizer::~Tokenizer() = default;

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder / "tokenizer.json")) return load_tokenizer_json(folder);
  if (std::filesystem::exists(folder / "tokenizer.model")) return load_tokenizer_model(folder);
  throw base::InvalidInput(
      base::concat(folder.string(),
                   " has neither tokenizer.json nor tokenizer.model; copy the model's own "
                   "there, or tokenise elsewhere and give the ids with --tokens FILE.npy"));
}

DecodedText decode_utf8_lossy(std::span<const std::byte> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  DecodedText decoded;
  decoded.text.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char next = utf8_at(text, at);
    if (next.valid) {
      decoded.text += text.substr(at, next.length);
    } else {
      append_utf8(decoded.text, next.code_point);
      ++decoded.replaced;
    }
    at += next.length;
  }
  return decoded;
}

}  // namespace kvcal::formats
