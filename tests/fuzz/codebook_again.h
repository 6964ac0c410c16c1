// fuzz/codebook_again.h: what holds of every codebook that the reader takes.
#pragma once

#include "base/error.h"
#include "formats/codebook.h"

namespace kvcal::fuzz {

/// write_and_read(codebook) gives the codebook again. Throws base::Error, which is no refusal, where it refuses what the reader took, or
/// gives another.
template <typename WriteAndRead>
void check_again(const formats::Codebook& codebook, const WriteAndRead& write_and_read) {
  formats::Codebook again;
  try {
    again = write_and_read(codebook);
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
