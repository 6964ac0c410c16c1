#include "calib/text/foreign_format.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace kvcal::calib {
namespace {

using namespace std::string_view_literals;

struct Format {
  std::size_t offset;
  std::string_view magic;
  /// Magic that plain text might begin with: it counts only where one of the four bytes after it is a control
  /// character, as it is in every file of the format.
  bool control_follows;
  const char* name;
  const char* way_out;
};

constexpr const char* kUnzip =
    "unpack it (unzip FILE) and give the texts in it; of a .docx, .odt or .epub: pandoc -t plain -o text.txt "
    "FILE";

constexpr const char* kBunzip = "unpack it: bzip2 -dk FILE, or bzip2 -dc FILE | kvcal ... --text -";

// In the order in which they are tried: UTF-32's mark begins with UTF-16's.
constexpr auto kFormats = std::to_array<Format>({
    {0, "PAR1"sv, true, "a Parquet file",
     "write its rows as JSONL: python3 -c \"import pandas; pandas.read_parquet('FILE').to_json('text.jsonl', "
     "orient='records', lines=True)\", and name the column of the text with --text-field"},
    {0, "ARROW1\0\0"sv, false, "an Arrow file",
     "write its rows as JSONL: python3 -c \"import pyarrow.feather as f; f.read_feather('FILE').to_json("
     "'text.jsonl', orient='records', lines=True)\", and name the column of the text with --text-field"},
    {0, "%PDF-"sv, false, "a PDF file", "take its text out: pdftotext FILE text.txt"},
    {0, "PK\x03\x04"sv, false, "a zip archive", kUnzip},
    {0, "PK\x05\x06"sv, false, "a zip archive", kUnzip},
    {0, "PK\x07\x08"sv, false, "a zip archive", kUnzip},
    {257, "ustar"sv, false, "a tar archive", "unpack it (tar -xf FILE) and give the texts in it"},
    // After "BZh" stands the level, 1 to 9; 4 bytes on, the first block's magic.
    {4, "1AY&SY"sv, false, "a bzip2 file", kBunzip},
    {4, "\x17\x72\x45\x38\x50\x90"sv, false, "a bzip2 file", kBunzip},  // an empty one
    {0,
     "\xFD"
     "7zXZ\0"sv,
     false, "an xz file", "unpack it: xz -dk FILE, or xz -dc FILE | kvcal ... --text -"},
    {0, "\x28\xB5\x2F\xFD"sv, false, "a zstd file",
     "unpack it: zstd -d FILE, or zstd -dc FILE | kvcal ... --text -"},
    {0, "\x04\x22\x4D\x18"sv, false, "an lz4 file",
     "unpack it: lz4 -d FILE, or lz4 -dc FILE | kvcal ... --text -"},
    {0, "7z\xBC\xAF\x27\x1C"sv, false, "a 7-Zip archive", "unpack it (7z x FILE) and give the texts in it"},
    {0, "\x89HDF\r\n\x1a\n"sv, false, "an HDF5 file",
     "write its text as plain text or JSONL (h5py reads it)"},
    {0, "\x93NUMPY"sv, false, "a NumPy array",
     "token numbers [samples, seqlen] go in with --tokens FILE, without --text"},
    {0, "SQLite format 3\0"sv, false, "an SQLite database",
     "write its text out: sqlite3 FILE 'select COLUMN from TABLE' > text.txt"},
    {0, "GGUF"sv, true, "a GGUF model",
     "--text takes the text to calibrate on; the model is --model's, as safetensors"},
    {0, "{\\rtf"sv, false, "an RTF document", "take its text out: pandoc -t plain -o text.txt FILE"},
    {0, "\xFF\xFE\0\0"sv, false, "UTF-32", "convert it: iconv -f UTF-32 -t UTF-8 FILE > text.txt"},
    {0, "\0\0\xFE\xFF"sv, false, "UTF-32", "convert it: iconv -f UTF-32 -t UTF-8 FILE > text.txt"},
    {0, "\xFF\xFE"sv, false, "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 FILE > text.txt"},
    {0, "\xFE\xFF"sv, false, "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 FILE > text.txt"},
});

bool is_control(char letter) {
  return static_cast<unsigned char>(letter) < 0x20 && letter != '\t' && letter != '\n' && letter != '\r';
}

bool is_of(std::string_view bytes, const Format& format) {
  if (bytes.size() < format.offset || !bytes.substr(format.offset).starts_with(format.magic)) return false;
  if (format.way_out == kBunzip && !bytes.starts_with("BZh")) return false;
  const std::string_view next = bytes.substr(format.offset + format.magic.size()).substr(0, 4);
  return !format.control_follows || std::ranges::any_of(next, is_control);
}

// Protocols 2 to 5 begin with the opcode PROTO, 0x80, which begins no character of UTF-8; 0 and 1 have no magic.
bool is_pickle(std::string_view bytes) {
  return bytes.size() >= 2 && bytes[0] == '\x80' && bytes[1] >= 2 && bytes[1] <= 5;
}

}  // namespace

void refuse_foreign_format(std::string_view bytes, const std::string& what) {
  const auto refuse = [&](const char* name, const char* way_out) {
    throw base::InvalidInput(
        base::concat(what, ": this is ", name, ", which is not read as text; ", way_out));
  };
  for (const Format& format : kFormats) {
    if (is_of(bytes, format)) refuse(format.name, format.way_out);
  }
  if (is_pickle(bytes))
    refuse("a Python pickle", "write its text as JSONL, a line of json.dumps({\"text\": text}) for each");
  const std::size_t nul = bytes.find('\0');
  if (nul == std::string_view::npos) return;
  throw base::InvalidInput(
      base::concat(what, ": binary, not text: a NUL byte at offset ", nul,
                   "; give plain text or JSONL (of UTF-16 without a mark: iconv -f UTF-16LE -t UTF-8)"));
}

}  // namespace kvcal::calib
