// tokenize_file FOLDER FILE [--lines | --binary] [--no-parse-special]: writes the ids of FILE's text to standard output,
// a line of numbers for the text or, with --lines, for each JSON string of the file (one a line); with --binary
// as they lie in memory, int32. For tokenizer_reference_test.py.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "formats/tokenizer/tokenizer.h"

namespace {

void print_ids(const kvcal::formats::Tokenizer& tokenizer, std::string_view text,
               const kvcal::formats::EncodeOptions& options) {
  std::string line;
  for (const std::int32_t id : tokenizer.encode(text, options)) line += std::to_string(id) + " ";
  std::cout << line << '\n';
}

int run(int argc, char** argv) {
  const auto tokenizer = kvcal::formats::load_tokenizer(argv[1]);
  kvcal::formats::EncodeOptions options;
  bool lines = false, binary = false;
  for (int i = 3; i < argc; ++i) {
    if (std::string(argv[i]) == "--lines") lines = true;
    if (std::string(argv[i]) == "--binary") binary = true;
    if (std::string(argv[i]) == "--no-parse-special") options.parse_special = false;
  }
  if (!lines) {
    const kvcal::base::MappedFile file(argv[2]);
    const auto decoded = kvcal::formats::decode_utf8_lossy(file.bytes());
    if (!binary) {
      print_ids(*tokenizer, decoded.text, options);
      return 0;
    }
    const std::vector<std::int32_t> ids = tokenizer->encode(decoded.text, options);
    return std::fwrite(ids.data(), sizeof(ids.front()), ids.size(), stdout) == ids.size() ? 0 : 1;
  }
  std::ifstream file(argv[2]);
  std::string line;
  while (std::getline(file, line))
    print_ids(*tokenizer, nlohmann::json::parse(line).get<std::string>(), options);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
