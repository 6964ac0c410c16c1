// A text: plain, gzip, JSONL or a JSON array of documents.
#include "base/progress.h"
#include "calib/text/text_source.h"
#include "formats/tokenizer/tokenizer.h"
#include "fuzz/input_file.h"
#include "fuzz/target.h"

namespace kvcal::fuzz {

void read_input(std::span<const std::byte> bytes) {
  const InputFile input(bytes);
  base::Progress progress;
  std::vector<std::string> warnings;
  const calib::SourceText source = calib::read_source(input.path(), "text", progress, warnings);
  if (source.text.empty()) throw base::Error("an empty text was taken");
  const formats::DecodedText decoded = formats::decode_utf8_lossy(std::as_bytes(std::span(source.text)));
  if (decoded.replaced != 0) throw base::Error("the text is not UTF-8");
}

}  // namespace kvcal::fuzz
