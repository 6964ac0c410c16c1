#include "calib/text/text_reader.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "base/sha256.h"

namespace kvcal::calib {

Text read_text(const std::filesystem::path& file, bool parse_special, const formats::Tokenizer& tokenizer,
               std::vector<std::string>& warnings) {
  const base::MappedFile mapped(file);
  if (mapped.bytes().empty()) throw base::InvalidInput(base::concat(file.string(), ": the text is empty"));
  Text text;
  text.info = {file.filename().string(), base::sha256_hex(mapped.bytes())};
  const formats::DecodedText decoded = formats::decode_utf8_lossy(mapped.bytes());
  if (decoded.replaced > 0) {
    warnings.push_back(base::concat(file.string(), ": not valid UTF-8 in ", decoded.replaced,
                                    " places, each read as U+FFFD; is it a text, and in this encoding?"));
  }
  text.ids = tokenizer.encode(decoded.text, formats::EncodeOptions{parse_special});
  return text;
}

BosPlace resolve_bos(BosPlace asked, const formats::Tokenizer& tokenizer) {
  const bool known = tokenizer.bos_id().has_value();
  if (asked == BosPlace::automatic) return tokenizer.adds_bos() && known ? BosPlace::each : BosPlace::none;
  if (asked != BosPlace::none && !known) {
    throw base::WrongUsage(base::concat("--bos ", base::choice_name(asked, kBosPlaces),
                                        ": this model's tokenizer names no BOS token; use --bos none"));
  }
  return asked;
}

bool holds_special(std::span<const std::int32_t> ids, const formats::Tokenizer& tokenizer) {
  const auto& special = tokenizer.special_ids();
  return std::any_of(ids.begin(), ids.end(), [&](std::int32_t id) {
    return std::find(special.begin(), special.end(), id) != special.end();
  });
}

std::int64_t equal_share(std::int64_t total, std::int64_t texts, std::int64_t index) {
  return total / texts + (index < total % texts ? 1 : 0);
}

}  // namespace kvcal::calib
