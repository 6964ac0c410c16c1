#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/checked.h"
#include "base/error.h"
#include "formats/internal/json.h"
#include "formats/internal/safetensors_header.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;

/// Receives the parser's events. A header has one form only, so a small state machine checks it as it comes:
/// what is not expected in a state is refused there, and a hostile header can't make us build a tree many
/// times its size.
class HeaderReader {
 public:
  explicit HeaderReader(const std::filesystem::path& file) : file_(file) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_float(double, const std::string& text) { return unexpected(concat("the number ", text)); }
  bool number_integer(std::int64_t value) { return unexpected(concat("the negative number ", value)); }
  bool binary(std::vector<std::uint8_t>&) { return unexpected("binary data"); }

  bool number_unsigned(std::uint64_t value) {
    if (state_ == State::kShape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        fail(concat("extent ", value, " overflows"));
      if (entry_.shape.size() == kMaxDimensions) fail(concat("more than ", kMaxDimensions, " dimensions"));
      entry_.shape.push_back(static_cast<std::int64_t>(value));
    } else if (state_ == State::kOffsets && offsets_ < 2) {
      (offsets_++ == 0 ? entry_.begin : entry_.end) = value;
    } else {
      return unexpected(concat("the number ", value));
    }
    return true;
  }

  bool string(const std::string& text) {
    if (state_ == State::kMetadata) {
      header_.metadata[key_] = text;
    } else if (state_ == State::kEntry && key_ == "dtype") {
      const std::optional<Dtype> dtype = dtype_from_name(text);
      if (!dtype) fail(concat("unknown dtype '", text, "'"));
      entry_.dtype = *dtype;
    } else {
      return unexpected("text");
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (state_ == State::kStart) {
      state_ = State::kTop;
    } else if (state_ == State::kTop) {
      // Not clear(), which takes as long as the largest object so far was large.
      keys_ = {};
      state_ = key_ == "__metadata__" ? State::kMetadata : State::kEntry;
      entry_ = HeaderEntry{key_, Dtype::F32, {}, 0, 0};
      in_entry_ = true;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool key(const std::string& text) {
    key_ = text;
    if (state_ == State::kTop) {
      if (names_.size() == kMaxTensors) fail(concat("more than ", kMaxTensors, " tensors"));
      if (!names_.insert(text).second) fail(concat("the name '", text, "' is given twice"));
      return true;
    }
    if (keys_.size() == kMaxMetadata) fail(concat("more than ", kMaxMetadata, " keys in __metadata__"));
    if (!keys_.insert(text).second) fail(concat("the key '", text, "' is given twice"));
    if (state_ == State::kEntry && text != "dtype" && text != "shape" && text != "data_offsets") {
      fail(concat("unknown key '", text, "'; expected dtype, shape and data_offsets"));
    }
    return true;
  }

  bool end_object() {
    if (state_ == State::kEntry) finish_entry();
    state_ = state_ == State::kTop ? State::kEnd : State::kTop;
    in_entry_ = false;
    return true;
  }

  bool start_array(std::size_t) {
    if (state_ != State::kEntry || key_ == "dtype") return unexpected("an array");
    state_ = key_ == "shape" ? State::kShape : State::kOffsets;
    offsets_ = 0;
    return true;
  }

  bool end_array() {
    if (state_ == State::kOffsets && offsets_ != 2) fail("data_offsets must be two numbers");
    state_ = State::kEntry;
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& error) {
    throw InvalidInput(concat(file_.string(), ": the header is not JSON: ", json_reason(error)));
  }

 private:
  enum class State { kStart, kTop, kEntry, kShape, kOffsets, kMetadata, kEnd };
  static constexpr std::size_t kMaxDimensions = 64;
  // Far more than any checkpoint's file has, and what bounds the memory and time that a header costs.
  static constexpr std::size_t kMaxTensors = 1U << 18, kMaxMetadata = 1U << 16;

  [[noreturn]] void fail(const std::string& what) const {
    throw InvalidInput(
        concat(file_.string(), ": ", in_entry_ ? concat("tensor '", entry_.name, "': ") : "", what));
  }

  [[noreturn]] bool unexpected(const std::string& what) const {
    switch (state_) {
      case State::kStart:
        fail(concat("the header must be a JSON object, found ", what));
      case State::kMetadata:
        fail(concat("__metadata__ must map text to text, found ", what, " at '", key_, "'"));
      case State::kEntry:
      case State::kShape:
      case State::kOffsets:
        fail(concat("wrong type of ", key_, ": found ", what));
      default:
        fail(concat("'", key_, "' must be an object, found ", what));
    }
  }

  void finish_entry() {
    for (const char* needed : {"dtype", "shape", "data_offsets"}) {
      if (!keys_.contains(needed)) fail(concat("no ", needed));
    }
    const std::string what = concat(file_.string(), ": tensor '", entry_.name, "'");
    const std::int64_t bytes = dtype_bytes(entry_.dtype, base::element_count(entry_.shape, what), what);
    if (entry_.begin > entry_.end)
      fail(concat("data_offsets begin at ", entry_.begin, " after their end ", entry_.end));
    if (entry_.end - entry_.begin != static_cast<std::uint64_t>(bytes)) {
      fail(concat("data_offsets hold ", entry_.end - entry_.begin, " bytes, but its dtype ",
                  dtype_name(entry_.dtype), " and shape need ", bytes));
    }
    header_.entries.push_back(std::move(entry_));
  }

  const std::filesystem::path& file_;
  SafetensorsHeader header_;
  State state_ = State::kStart;
  std::string key_;
  HeaderEntry entry_;
  bool in_entry_ = false;
  int offsets_ = 0;
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> keys_;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, const std::filesystem::path& file) {
  HeaderReader reader(file);
  nlohmann::json::sax_parse(text, &reader);
  return reader.take();
}

}  // namespace kvcal::formats
