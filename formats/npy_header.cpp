#include <charconv>
#include <set>

#include "base/error.h"
#include "formats/internal/npy_header.h"

namespace kvcal::formats {
namespace {

/// A reader of {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }, with the keys in any order.
class Parser {
 public:
  Parser(std::string_view text, std::string_view what) : text_(text), what_(what) {}

  NpyHeader parse() {
    NpyHeader header;
    expect('{');
    std::set<std::string> seen;
    while (!accept('}')) {
      const std::string key = quoted();
      if (!seen.insert(key).second) fail(base::concat("the key '", key, "' is given twice"));
      expect(':');
      value(key, header);
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (!text_.empty()) fail("text after the dictionary");
    for (const char* needed : {"descr", "fortran_order", "shape"}) {
      if (!seen.contains(needed)) fail(base::concat("no '", needed, "'"));
    }
    return header;
  }

 private:
  void value(const std::string& key, NpyHeader& header) {
    if (key == "descr") {
      skip_space();
      if (text_.starts_with('[') || text_.starts_with('('))
        fail("structured elements are not supported; save one field alone");
      header.descr = quoted();
    } else if (key == "fortran_order") {
      header.fortran_order = boolean();
    } else if (key == "shape") {
      header.shape = tuple();
    } else {
      fail(base::concat("unknown key '", key, "'"));
    }
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw base::InvalidInput(base::concat(what_, ": bad .npy header: ", what));
  }

  void skip_space() {
    while (!text_.empty() && (text_.front() == ' ' || text_.front() == '\n' || text_.front() == '\t'))
      text_.remove_prefix(1);
  }

  bool accept(char wanted) {
    skip_space();
    if (!text_.starts_with(wanted)) return false;
    text_.remove_prefix(1);
    return true;
  }

  void expect(char wanted) {
    if (!accept(wanted))
      fail(base::concat("expected '", wanted, "'", text_.empty() ? " before its end" : ""));
  }

  std::string quoted() {
    skip_space();
    if (text_.empty() || (text_.front() != '\'' && text_.front() != '"')) fail("expected quoted text");
    const std::size_t end = text_.find(text_.front(), 1);
    if (end == std::string_view::npos) fail("text without its closing quote");
    std::string result(text_.substr(1, end - 1));
    if (result.find('\\') != std::string::npos) fail("escapes are not supported");
    text_.remove_prefix(end + 1);
    return result;
  }

  bool boolean() {
    skip_space();
    for (const bool value : {false, true}) {
      const std::string_view name = value ? "True" : "False";
      if (text_.starts_with(name)) {
        text_.remove_prefix(name.size());
        return value;
      }
    }
    fail("fortran_order must be True or False");
  }

  std::vector<std::int64_t> tuple() {
    constexpr std::size_t kMaxDimensions = 64;
    std::vector<std::int64_t> shape;
    expect('(');
    while (!accept(')')) {
      skip_space();
      std::int64_t extent = 0;
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), extent);
      if (error == std::errc::result_out_of_range) fail("an extent of the shape overflows");
      if (error != std::errc{} || extent < 0) fail("the shape must be a tuple of numbers, none negative");
      text_.remove_prefix(static_cast<std::size_t>(end - text_.data()));
      if (text_.starts_with('L')) text_.remove_prefix(1);  // written by Python 2
      if (shape.size() == kMaxDimensions) fail(base::concat("more than ", kMaxDimensions, " dimensions"));
      shape.push_back(extent);
      if (!accept(',')) {
        // (3) is a number in Python, not a tuple; numpy refuses it, too.
        if (shape.size() == 1) fail("the shape must be a tuple: (3,)");
        expect(')');
        break;
      }
    }
    return shape;
  }

  std::string_view text_;
  std::string_view what_;
};

}  // namespace

NpyHeader parse_npy_header(std::string_view text, std::string_view what) {
  return Parser(text, what).parse();
}

}  // namespace kvcal::formats
