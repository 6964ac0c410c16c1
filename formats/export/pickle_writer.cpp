#include "formats/export/pickle_writer.h"

#include <bit>
#include <cstddef>
#include <utility>

#include "base/checked.h"
#include "base/error.h"

namespace kvcal::formats {
namespace {

// Opcodes, by their names in pickletools.
constexpr std::string_view kProtocol2 = "\x80\x02";  // PROTO 2
constexpr char kStop = '.';
constexpr char kMark = '(';
constexpr char kEmptyDict = '}';
constexpr char kSetItems = 'u';
constexpr char kEmptyList = ']';
constexpr char kAppends = 'e';
constexpr char kTuple = 't';
constexpr char kTuple1 = '\x85';
constexpr char kBinUnicode = 'X';
constexpr char kBinFloat = 'G';
constexpr char kReduce = 'R';
// GLOBAL, then module and name, a line each. This class is float32 whatever torch's default type or device is, and
// unlike torch's own way of pickling a tensor it takes no pickle within the pickle.
constexpr std::string_view kFloatTensor = "ctorch\nFloatTensor\n";

constexpr char kNothing = '\0';  // a tuple has no opcode before its mark

}  // namespace

PickleWriter::PickleWriter() : bytes_(kProtocol2) {}

void PickleWriter::begin(char empty, char close) {
  if (empty != kNothing) bytes_ += empty;
  bytes_ += kMark;
  open_ += close;
}

void PickleWriter::begin_dict() {
  begin(kEmptyDict, kSetItems);
}

void PickleWriter::begin_list() {
  begin(kEmptyList, kAppends);
}

void PickleWriter::begin_tuple() {
  begin(kNothing, kTuple);
}

void PickleWriter::end() {
  if (open_.empty()) throw base::Error("PickleWriter: end() where no dict, list or tuple is open");
  bytes_ += open_.back();
  open_.pop_back();
}

void PickleWriter::text(std::string_view text) {
  const auto size = base::checked_cast<std::uint32_t>(text.size(), "a text of a pickle");
  bytes_ += kBinUnicode;
  for (int shift = 0; shift < 32; shift += 8) bytes_ += static_cast<char>((size >> shift) & 0xFF);
  bytes_ += text;
}

void PickleWriter::number(double value) {
  const auto bits = std::bit_cast<std::uint64_t>(value);
  bytes_ += kBinFloat;
  // The one number of the format that is big-endian.
  for (int shift = 56; shift >= 0; shift -= 8) bytes_ += static_cast<char>((bits >> shift) & 0xFF);
}

void PickleWriter::nested_lists(std::span<const float> values, std::span<const std::int64_t> shape) {
  begin_list();
  if (shape.size() == 1) {
    for (const float value : values) number(value);
  } else {
    const std::size_t part = values.size() / static_cast<std::size_t>(shape.front());
    for (std::size_t at = 0; at < values.size(); at += part)
      nested_lists(values.subspan(at, part), shape.subspan(1));
  }
  end();
}

void PickleWriter::float_tensor(std::span<const float> values, std::span<const std::int64_t> shape) {
  const std::int64_t count = base::element_count(shape, "a tensor of a pickle");
  if (shape.empty() || count == 0)
    throw base::InvalidInput("a tensor of a pickle has no extent, or one of 0; each must be at least 1");
  if (std::cmp_not_equal(count, values.size())) {
    throw base::InvalidInput(
        base::concat("a tensor of a pickle: ", values.size(), " values for a shape of ", count));
  }
  bytes_ += kFloatTensor;
  nested_lists(values, shape);
  bytes_ += kTuple1;
  bytes_ += kReduce;
}

std::string PickleWriter::finish() {
  if (!open_.empty()) throw base::Error("PickleWriter: finish() where a dict, list or tuple is open");
  bytes_ += kStop;
  return std::move(bytes_);
}

}  // namespace kvcal::formats
