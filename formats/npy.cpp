#include "formats/npy.h"

#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "base/new_file.h"
#include "formats/internal/npy_header.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;

static_assert(std::endian::native == std::endian::little,
              "arrays are copied to and from little-endian files as they are");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::uint32_t kMaxHeaderBytes = 1U << 20;

struct Element {
  std::string_view code;
  Dtype dtype;
};
constexpr std::array kElements = {
    Element{"b1", Dtype::BOOL}, Element{"i1", Dtype::I8},  Element{"u1", Dtype::U8},
    Element{"i2", Dtype::I16},  Element{"u2", Dtype::U16}, Element{"i4", Dtype::I32},
    Element{"u4", Dtype::U32},  Element{"i8", Dtype::I64}, Element{"u8", Dtype::U64},
    Element{"f2", Dtype::F16},  Element{"f4", Dtype::F32}, Element{"f8", Dtype::F64},
};

Dtype element_dtype(const std::string& descr, const std::string& file) {
  const auto error = [&](std::string_view reason) {
    return InvalidInput(concat(file, ": elements of type '", descr, "'", reason));
  };
  const std::string_view code = std::string_view(descr).substr(descr.empty() ? 0 : 1);
  if (code.starts_with('O') || descr == "O")
    throw error(": pickled Python objects can run code and are not read; save a plain array");
  for (const Element& element : kElements) {
    if (element.code != code) continue;
    if (descr.front() == '>' && !code.ends_with('1'))
      throw error(" are big-endian; save the array with .astype('<' + its type)");
    if (descr.front() != '<' && !code.ends_with('1'))
      throw error(" have an unknown byte order; expected '<'");
    return element.dtype;
  }
  throw error(" are not supported; expected a bool, integer or float type such as '<f4'");
}

/// The header's text and where the data begins.
std::pair<std::string_view, std::size_t> header_text(std::span<const std::byte> bytes,
                                                     const std::string& file) {
  const auto byte_at = [&](std::size_t i) { return std::to_integer<std::uint32_t>(bytes[i]); };
  if (bytes.size() < 10 || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    throw InvalidInput(concat(file, ": not a .npy file (it does not begin as numpy.save begins one)"));
  }
  const std::uint32_t major = byte_at(6);
  if (major < 1 || major > 3 || byte_at(7) != 0) {
    throw InvalidInput(
        concat(file, ": .npy version ", major, ".", byte_at(7), " is unknown; expected 1.0, 2.0 or 3.0"));
  }
  const std::size_t prefix = major == 1 ? 10 : 12;
  if (bytes.size() < prefix) throw InvalidInput(concat(file, ": truncated in its header"));
  std::uint32_t length = byte_at(8) | byte_at(9) << 8;
  if (major > 1) length |= byte_at(10) << 16 | byte_at(11) << 24;
  if (length > kMaxHeaderBytes)
    throw InvalidInput(concat(file, ": a header of ", length, " bytes is longer than any array needs"));
  if (length > bytes.size() - prefix)
    throw InvalidInput(concat(file, ": truncated in its header of ", length, " bytes"));
  return {{reinterpret_cast<const char*>(bytes.data()) + prefix, length}, prefix + length};
}

template <typename Stored>
void widen(std::span<const std::byte> data, std::span<std::int64_t> out, const std::string& file) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, data.data() + i * sizeof(Stored), sizeof(Stored));
    if (!std::in_range<std::int64_t>(stored))
      throw InvalidInput(concat(file, ": element ", i, " (", stored, ") overflows int64"));
    out[i] = static_cast<std::int64_t>(stored);
  }
}

void write_array(const std::filesystem::path& path, std::string_view descr, std::span<const std::byte> data,
                 std::size_t count, std::span<const std::int64_t> shape) {
  const std::int64_t elements = base::element_count(shape, path.string());
  if (!std::cmp_equal(elements, count)) {
    throw InvalidInput(
        concat(path.string(), ": the shape holds ", elements, " elements, but ", count, " are given"));
  }
  std::string header = concat("{'descr': '", descr, "', 'fortran_order': False, 'shape': (");
  for (std::size_t i = 0; i < shape.size(); ++i)
    header += concat(i == 0 ? "" : " ", shape[i], shape.size() == 1 || i + 1 < shape.size() ? "," : "");
  header += "), }";
  // The data begins at a multiple of 64, as numpy does it; the header ends with a newline.
  constexpr std::size_t kPrefix = 10;
  header.append((64 - (kPrefix + header.size() + 1) % 64) % 64, ' ');
  header += '\n';
  std::string start = concat(kMagic, '\x01', '\0');
  start += static_cast<char>(header.size() & 0xffU);
  start += static_cast<char>(header.size() >> 8);

  base::NewFile writer(path);
  writer.write(start);
  writer.write(header);
  writer.write(data);
  writer.publish();
}

}  // namespace

NpyFile::NpyFile(const std::filesystem::path& path) : map_(path) {
  const std::string file = path.string();
  const auto [text, begin] = header_text(map_.bytes(), file);
  NpyHeader header = parse_npy_header(text, file);
  dtype_ = element_dtype(header.descr, file);
  if (header.fortran_order) {
    throw InvalidInput(concat(file, ": the array is in Fortran order; save it with numpy.ascontiguousarray"));
  }
  size_ = base::element_count(header.shape, file);
  const auto needed = static_cast<std::uint64_t>(dtype_bytes(dtype_, size_, file));
  const std::uint64_t present = map_.bytes().size() - begin;
  if (present < needed) {
    throw InvalidInput(
        concat(file, ": truncated: ", present, " bytes of data, but its shape needs ", needed));
  }
  if (present > needed) {
    throw InvalidInput(
        concat(file, ": ", present - needed, " bytes follow the array; expected one array and nothing else"));
  }
  shape_ = std::move(header.shape);
  data_ = map_.bytes().subspan(begin);
}

std::vector<float> NpyFile::floats() const {
  std::vector<float> values(static_cast<std::size_t>(size_));
  copy_to_float(dtype_, data_, values, path().string());
  return values;
}

std::vector<std::int64_t> NpyFile::integers() const {
  const std::string file = path().string();
  std::vector<std::int64_t> values(static_cast<std::size_t>(size_));
  switch (dtype_) {
    case Dtype::I8:
      widen<std::int8_t>(data_, values, file);
      break;
    case Dtype::U8:
      widen<std::uint8_t>(data_, values, file);
      break;
    case Dtype::I16:
      widen<std::int16_t>(data_, values, file);
      break;
    case Dtype::U16:
      widen<std::uint16_t>(data_, values, file);
      break;
    case Dtype::I32:
      widen<std::int32_t>(data_, values, file);
      break;
    case Dtype::U32:
      widen<std::uint32_t>(data_, values, file);
      break;
    case Dtype::I64:
      widen<std::int64_t>(data_, values, file);
      break;
    case Dtype::U64:
      widen<std::uint64_t>(data_, values, file);
      break;
    default:
      throw InvalidInput(concat(file, ": elements of ", dtype_name(dtype_), "; expected an integer type"));
  }
  return values;
}

void write_npy(const std::filesystem::path& path, std::span<const float> values,
               std::span<const std::int64_t> shape) {
  write_array(path, "<f4", std::as_bytes(values), values.size(), shape);
}

void write_npy(const std::filesystem::path& path, std::span<const double> values,
               std::span<const std::int64_t> shape) {
  write_array(path, "<f8", std::as_bytes(values), values.size(), shape);
}

void write_npy(const std::filesystem::path& path, std::span<const std::int32_t> values,
               std::span<const std::int64_t> shape) {
  write_array(path, "<i4", std::as_bytes(values), values.size(), shape);
}

void write_npy(const std::filesystem::path& path, std::span<const std::int64_t> values,
               std::span<const std::int64_t> shape) {
  write_array(path, "<i8", std::as_bytes(values), values.size(), shape);
}

}  // namespace kvcal::formats
