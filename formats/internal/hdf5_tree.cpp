#include "formats/internal/hdf5_tree.h"

#include <bit>
#include <cstring>

#include "base/error.h"
#include "base/sha256.h"

namespace kvcal::formats {
namespace {

static_assert(std::endian::native == std::endian::little,
              "values are kept as the file has them: little-endian");

template <typename T>
Hdf5Value scalar(std::string type, T value) {
  Hdf5Value result{std::move(type), {}, std::vector<std::byte>(sizeof(T))};
  std::memcpy(result.data.data(), &value, sizeof(T));
  return result;
}

}  // namespace

Hdf5Value hdf5_text(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {"string", {}, {bytes.begin(), bytes.end()}};
}

Hdf5Value hdf5_integer(std::int64_t value) {
  return scalar("int64", value);
}

Hdf5Value hdf5_byte(std::uint8_t value) {
  return scalar("uint8", value);
}

Hdf5Value hdf5_real(double value) {
  return scalar("float64", value);
}

Hdf5Value hdf5_floats(std::span<const float> values) {
  const auto bytes = std::as_bytes(values);
  return {"float32", {static_cast<std::int64_t>(values.size())}, {bytes.begin(), bytes.end()}};
}

Hdf5Value hdf5_matrix(std::span<const float> values, std::size_t columns) {
  Hdf5Value value = hdf5_floats(values);
  value.shape = {static_cast<std::int64_t>(values.size() / columns), static_cast<std::int64_t>(columns)};
  return value;
}

std::string attribute_key(std::string_view object, std::string_view name) {
  return base::concat(object, "@", name);
}

std::string content_sha256(const Hdf5Tree& tree) {
  base::Sha256 hash;
  const std::string_view zero("\0", 1);
  // std::map gives the keys in byte order.
  for (const auto& [key, value] : tree.values) {
    if (key == "/@content_sha256") continue;
    std::string shape;
    for (const std::int64_t extent : value.shape) shape += base::concat(shape.empty() ? "" : ",", extent);
    const auto size = static_cast<std::uint64_t>(value.data.size());
    hash.update(key).update(zero).update(value.type).update(zero).update(shape).update(zero);
    hash.update(std::as_bytes(std::span(&size, 1))).update(value.data);
  }
  return hash.hex();
}

}  // namespace kvcal::formats
