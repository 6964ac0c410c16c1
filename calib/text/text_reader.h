// calib/text/text_reader.h: one text as tokens, and what all jobs that read texts do alike.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "calib/text/bos_place.h"
#include "calib/text/json_documents.h"
#include "formats/codebook.h"
#include "formats/tokenizer/tokenizer.h"

namespace kvcal::calib {

/// A text's name and SHA-256, and its tokens without any BOS but those that it spells out.
struct Text {
  formats::TextInfo info;
  std::vector<std::int32_t> ids;
};

/// How texts are read; the fields are options of the same names.
struct TextReading {
  std::string text_field = kDefaultTextField;  ///< the member of JSON documents that holds the text
  bool parse_special = true;                   ///< special tokens written in the text become their ids
};

/// Reads (text_source.h: a file of any of its kinds, or standard input) and tokenises one text. Throws what
/// read_source() and the tokenizer throw; what read_source() warns of goes to `warnings`.
[[nodiscard]] Text read_text(const std::filesystem::path& file, const TextReading& reading,
                             const formats::Tokenizer& tokenizer, base::Progress& progress,
                             std::vector<std::string>& warnings);

/// `asked`, where automatic is what the tokenizer itself does: never automatic. Throws WrongUsage where
/// `each` or `first` is asked of a tokenizer that names no BOS.
[[nodiscard]] BosPlace resolve_bos(BosPlace asked, const formats::Tokenizer& tokenizer);

/// Whether any of the ids is one of the tokenizer's special tokens.
[[nodiscard]] bool holds_special(std::span<const std::int32_t> ids, const formats::Tokenizer& tokenizer);

/// What text `index` of `texts` gives to `total` windows: equal shares, the first ones one more.
[[nodiscard]] std::int64_t equal_share(std::int64_t total, std::int64_t texts, std::int64_t index);

}  // namespace kvcal::calib
