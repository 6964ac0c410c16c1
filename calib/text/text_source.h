// calib/text/text_source.h: a text as people have it: plain, JSONL or a JSON array of documents, gzip of any of
// these; from a file, a pipe or standard input.
//
// What a file is is told by its content, never by its name: gzip by its first bytes (gzip.h), what is no text by them
// too (foreign_format.h), documents by how they begin (json_documents.h); all else is plain text. Plain text stays as it
// is, byte order mark and line ends included, but for bytes that are not UTF-8, which are read as Python's
// errors="replace" reads them.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "calib/text/json_documents.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// The name that stands for standard input.
inline constexpr std::string_view kStandardInput = "-";

/// The most that is read of a pipe or standard input: the same as of a gzip file's text (InflateLimits).
inline constexpr std::uint64_t kMaxPipedBytes = std::uint64_t{8} << 30;

struct SourceText {
  /// File name without folder, or "-"; SHA-256 of the bytes as they were given, packed ones packed.
  formats::TextInfo info;
  std::string text;            ///< UTF-8, not empty
  std::int64_t documents = 0;  ///< of JSON; 0: plain text
};

/// What errors call a source: its path as given, or "standard input".
[[nodiscard]] std::string source_name(const std::filesystem::path& file);

/// Throws WrongUsage where standard input is named more than once.
void check_sources(std::span<const std::filesystem::path> files);

/// Reads one source; `field` is the member of JSON objects that holds the text. Adds to `warnings` where bytes are not
/// UTF-8, where a text begins like JSON and is none, and where a field was named and the text is plain.
/// Throws InvalidInput naming the source and the way out: empty, not a text, damaged, beyond a limit; WrongUsage where
/// standard input (the descriptor `standard_input`) is a terminal; SystemError.
[[nodiscard]] SourceText read_source(const std::filesystem::path& file, const std::string& field,
                                     base::Progress& progress, std::vector<std::string>& warnings,
                                     int standard_input = STDIN_FILENO);

/// The same of bytes that are there already; `what` is their name in errors, info.name stays empty.
[[nodiscard]] SourceText text_of_bytes(std::span<const std::byte> bytes, const std::string& what,
                                       const std::string& field, base::Progress& progress,
                                       std::vector<std::string>& warnings);

}  // namespace kvcal::calib
