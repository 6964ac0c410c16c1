// fuzz/codebook_again.h: what holds of every codebook that the reader takes.
#pragma once

#include <filesystem>

#include "base/error.h"
#include "formats/codebook.h"
#include "fuzz/input_file.h"

namespace kvcal::fuzz {

/// Reads it, writes what was read, and reads that. Throws what the reader throws, and base::Error where the writer refuses what
/// the reader took, or the two codebooks differ.
inline void read_and_write_again(const std::filesystem::path& file) {
  const formats::Codebook codebook = formats::read_codebook(file);
  InputFolder folder;
  const std::filesystem::path copy = folder.file("again.h5");
  formats::Codebook again;
  try {
    formats::write_codebook(copy, codebook);
    again = formats::read_codebook(copy);
  } catch (const base::Error& error) {
    throw base::Error(base::concat("a codebook that was read can't be written again: ", error.what()));
  }
  // What this version does not know is not written, and the version is its own.
  again.schema_minor = codebook.schema_minor;
  again.content_sha256 = codebook.content_sha256;
  again.created_by = codebook.created_by;
  if (again != codebook) throw base::Error("written and read again, the codebook is another");
}

}  // namespace kvcal::fuzz
