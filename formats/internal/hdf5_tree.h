// formats/internal/hdf5_tree.h: a whole HDF5 file as a table of values, and the hash over it.
// The only door to HDF5.
//
// What schema 1 allows in a file: groups, datasets and attributes of integers, IEEE floats (all
// little-endian) and text, each object under one name. A dataset is chunked with the Fletcher-32 filter and
// no other. Everything else (links out of the file, compression, compound types, ...) is refused by name, so
// what is read is bounded by the size of the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvcal::formats {

/// A dataset or an attribute.
struct Hdf5Value {
  std::string type;                 ///< as numpy calls it: "float32", "int64", "uint8", ...; text: "string"
  std::vector<std::int64_t> shape;  ///< empty for a scalar
  /// Little-endian, row-major; text: UTF-8, in an array each followed by a zero byte.
  std::vector<std::byte> data;

  [[nodiscard]] std::string_view text() const {
    return {reinterpret_cast<const char*>(data.data()), data.size()};
  }
};

/// Keys are "/model@name" (an attribute), "/layers/0000/key/fisher_channel" (a dataset);
/// a root attribute is "/@format".
struct Hdf5Tree {
  std::set<std::string> groups;  ///< without the root
  std::map<std::string, Hdf5Value, std::less<>> values;
};

[[nodiscard]] Hdf5Value hdf5_text(std::string_view text);
[[nodiscard]] Hdf5Value hdf5_integer(std::int64_t value);
[[nodiscard]] Hdf5Value hdf5_byte(std::uint8_t value);
[[nodiscard]] Hdf5Value hdf5_real(double value);
[[nodiscard]] Hdf5Value hdf5_floats(std::span<const float> values);
/// [values / columns, columns]
[[nodiscard]] Hdf5Value hdf5_matrix(std::span<const float> values, std::size_t columns);

/// The key of an attribute of a group or dataset; "/" is the root.
[[nodiscard]] std::string attribute_key(std::string_view object, std::string_view name);

/// content_sha256 as docs/codebook-format.md defines it: over every value but "/@content_sha256".
[[nodiscard]] std::string content_sha256(const Hdf5Tree& tree);

/// Throws SystemError where the file cannot be opened, InvalidInput for one that is not HDF5, damaged,
/// truncated, or holds what schema 1 does not allow.
[[nodiscard]] Hdf5Tree read_hdf5_tree(const std::filesystem::path& path);

/// Writes the file, whole or not at all: the same tree gives the same bytes (with the same HDF5 library).
/// Throws SystemError (a full disk).
void write_hdf5_tree(const std::filesystem::path& path, const Hdf5Tree& tree);

}  // namespace kvcal::formats
