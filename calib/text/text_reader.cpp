#include "calib/text/text_reader.h"

#include <algorithm>

#include "base/error.h"
#include "calib/text/text_source.h"

namespace kvcal::calib {

Text read_text(const std::filesystem::path& file, const TextReading& reading,
               const formats::Tokenizer& tokenizer, base::Progress& progress,
               std::vector<std::string>& warnings) {
  const SourceText source = read_source(file, reading.text_field, progress, warnings);
  return {source.info, tokenizer.encode(source.text, formats::EncodeOptions{reading.parse_special})};
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
