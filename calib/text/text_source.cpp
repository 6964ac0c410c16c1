#include "calib/text/text_source.h"

#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/sha256.h"
#include "calib/text/foreign_format.h"
#include "calib/text/gzip.h"
#include "formats/tokenizer/tokenizer.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;
using base::concat;
using base::InvalidInput;

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
// How long a wait for a pipe lasts before it looks whether the user wants to stop.
constexpr int kPollMilliseconds = 200;

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(const fs::path& file) : value_(::open(file.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (value_ < 0) base::throw_system_error("open", file, errno);
  }
  ~Descriptor() { ::close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return value_; }

 private:
  int value_;
};

// All that comes through a pipe. A read that blocks would be deaf to Ctrl-C: it is waited for in steps.
std::vector<std::byte> read_pipe(int descriptor, const std::string& what, base::Progress& progress) {
  if (::isatty(descriptor) != 0) {
    throw base::WrongUsage(concat("--text: ", what,
                                  " is a terminal; pipe a text into it, such as zcat text.gz | kvcal ... "
                                  "--text -, or name a file"));
  }
  std::vector<std::byte> bytes;
  std::vector<std::byte> chunk(kChunkBytes);
  for (;;) {
    progress.check_interrupted();
    pollfd waiting{descriptor, POLLIN, 0};
    if (const int ready = ::poll(&waiting, 1, kPollMilliseconds); ready == 0 || (ready < 0 && errno == EINTR))
      continue;
    const ssize_t got = ::read(descriptor, chunk.data(), chunk.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got < 0) base::throw_system_error("read", what, errno);
    if (got == 0) return bytes;
    bytes.insert(bytes.end(), chunk.begin(), chunk.begin() + got);
    if (bytes.size() > kMaxPipedBytes) {
      throw InvalidInput(
          concat(what, ": more than ", kMaxPipedBytes >> 30, " GiB came; cut it, such as with head -c 1G"));
    }
  }
}

bool is_piped(const fs::path& file) {
  std::error_code error;
  const fs::file_type type = fs::status(file, error).type();
  return type == fs::file_type::fifo || type == fs::file_type::character || type == fs::file_type::socket;
}

void refuse_empty(bool empty, const std::string& what) {
  if (empty) throw InvalidInput(concat(what, ": the text is empty"));
}

// Plain text, or documents' texts, of bytes that are not packed any more.
SourceText decode(std::span<const std::byte> bytes, const std::string& what, const std::string& field,
                  base::Progress& progress, std::vector<std::string>& warnings) {
  refuse_empty(bytes.empty(), what);
  refuse_foreign_format(as_text(bytes), what);
  SourceText source;
  formats::DecodedText decoded = formats::decode_utf8_lossy(bytes);
  if (decoded.replaced > 0) {
    warnings.push_back(concat(what, ": not valid UTF-8 in ", decoded.replaced,
                              " places, each read as U+FFFD; is it a text, and in this encoding?"));
  }
  progress.check_interrupted();
  if (std::optional<JsonDocuments> found = json_documents(decoded.text, what, field, progress)) {
    source.text = std::move(found->text);
    source.documents = found->documents;
    refuse_empty(source.text.find_first_not_of('\n') == std::string::npos, what);
    return source;
  }
  if (begins_like_json(decoded.text)) {
    warnings.push_back(
        concat(what,
               ": begins like JSON and is read as plain text: no whole object stands on its first "
               "line, as in JSONL (jq -c . FILE > text.jsonl writes it so)"));
  } else if (field != kDefaultTextField) {
    warnings.push_back(concat(what, ": plain text, not JSON: --text-field does nothing for it"));
  }
  source.text = std::move(decoded.text);
  return source;
}

}  // namespace

std::string source_name(const fs::path& file) {
  return file == kStandardInput ? "standard input" : file.string();
}

void check_sources(std::span<const fs::path> files) {
  if (std::ranges::count(files, fs::path(kStandardInput)) > 1)
    throw base::WrongUsage("--text has - (standard input) more than once; it can be read once");
}

SourceText text_of_bytes(std::span<const std::byte> bytes, const std::string& what, const std::string& field,
                         base::Progress& progress, std::vector<std::string>& warnings) {
  SourceText source;
  if (is_gzip(bytes)) {
    const std::string inflated = inflate_gzip(bytes, what, progress);
    const auto inner = std::as_bytes(std::span(inflated));
    if (is_gzip(inner)) throw InvalidInput(concat(what, ": gzip inside gzip; unpack it once: gzip -d FILE"));
    source = decode(inner, what, field, progress, warnings);
  } else {
    source = decode(bytes, what, field, progress, warnings);
  }
  source.info.sha256 = base::sha256_hex(bytes);
  return source;
}

SourceText read_source(const fs::path& file, const std::string& field, base::Progress& progress,
                       std::vector<std::string>& warnings, int standard_input) {
  const std::string what = source_name(file);
  SourceText source;
  if (file == kStandardInput) {
    const std::vector<std::byte> bytes = read_pipe(standard_input, what, progress);
    source = text_of_bytes(bytes, what, field, progress, warnings);
  } else if (is_piped(file)) {
    const std::vector<std::byte> bytes = read_pipe(Descriptor(file).get(), what, progress);
    source = text_of_bytes(bytes, what, field, progress, warnings);
  } else {
    const base::MappedFile mapped(file);
    source = text_of_bytes(mapped.bytes(), what, field, progress, warnings);
  }
  source.info.name = file.filename().string();
  return source;
}

}  // namespace kvcal::calib
