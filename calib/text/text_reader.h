// calib/text/text_reader.h: one text file as tokens, and what all jobs that read texts do alike.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "calib/text/bos_place.h"
#include "formats/codebook.h"
#include "formats/tokenizer/tokenizer.h"

namespace kvcal::calib {

/// A text's name and SHA-256, and its tokens without any BOS but those that it spells out.
struct Text {
  formats::TextInfo info;
  std::vector<std::int32_t> ids;
};

/// Reads and tokenises one file. Bytes that are not UTF-8 become U+FFFD, with one entry in `warnings`.
/// Throws InvalidInput for an empty file, and what the tokenizer throws.
[[nodiscard]] Text read_text(const std::filesystem::path& file, bool parse_special,
                             const formats::Tokenizer& tokenizer, std::vector<std::string>& warnings);

/// `asked`, where automatic is what the tokenizer itself does: never automatic. Throws WrongUsage where
/// `each` or `first` is asked of a tokenizer that names no BOS.
[[nodiscard]] BosPlace resolve_bos(BosPlace asked, const formats::Tokenizer& tokenizer);

/// Whether any of the ids is one of the tokenizer's special tokens.
[[nodiscard]] bool holds_special(std::span<const std::int32_t> ids, const formats::Tokenizer& tokenizer);

/// What text `index` of `texts` gives to `total` windows: equal shares, the first ones one more.
[[nodiscard]] std::int64_t equal_share(std::int64_t total, std::int64_t texts, std::int64_t index);

}  // namespace kvcal::calib
