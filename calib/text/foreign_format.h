// calib/text/foreign_format.h: files that are no text, known by their first bytes, and how their text is got out.
#pragma once

#include <string>
#include <string_view>

namespace kvcal::calib {

/// Throws InvalidInput naming `what`, its format and the way to a text: Parquet, Arrow, PDF, zip (.docx, .epub, .npz),
/// tar, bzip2, xz, zstd, lz4, 7-Zip, HDF5, NumPy, SQLite, GGUF, a pickle, RTF, UTF-16 and UTF-32 with a byte order
/// mark; and any other with a NUL byte, naming its offset. gzip is not among them.
void refuse_foreign_format(std::string_view bytes, const std::string& what);

}  // namespace kvcal::calib
