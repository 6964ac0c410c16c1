#include <algorithm>
#include <array>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"
#include "base/file.h"
#include "formats/internal/hdf5_guard.h"
#include "formats/internal/hdf5_handle.h"
#include "formats/internal/hdf5_tree.h"
#include "formats/internal/hdf5_types.h"
#include "formats/internal/json.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;

/// Far above any codebook (a thousand layers of a large model take less), and below what memory can't hold.
constexpr std::uint64_t kMaxFileBytes = std::uint64_t{1} << 30;
constexpr int kMaxDepth = 16;
constexpr int kMaxDimensions = 8;

// Callbacks cannot throw through C: a failure stops the iteration, which the caller's check then reports.
template <typename Info>
herr_t collect_name(hid_t, const char* name, const Info*, void* names) {
  try {
    static_cast<std::vector<std::string>*>(names)->emplace_back(name);
    return 0;
  } catch (...) {
    return -1;
  }
}

/// Frees the texts of variable length that HDF5 put behind the pointers of a buffer, null: none.
class VariableTexts {
 public:
  VariableTexts(char* buffer, hid_t type, hid_t space) : buffer_(buffer), type_(type), space_(space) {}
  ~VariableTexts() {
    if (buffer_ != nullptr) H5Dvlen_reclaim(type_, space_, H5P_DEFAULT, buffer_);
  }
  VariableTexts(const VariableTexts&) = delete;
  VariableTexts& operator=(const VariableTexts&) = delete;

 private:
  char* buffer_;
  hid_t type_, space_;
};

class Reader {
 public:
  Reader(std::string file, std::uint64_t file_bytes)
      : file_(std::move(file)), remaining_(file_bytes), file_bytes_(file_bytes) {}

  Hdf5Tree read(hid_t file) {
    const Hdf5Handle root(H5Gopen2(file, "/", H5P_DEFAULT), H5Gclose,
                          concat(file_, ": damaged: no root group"));
    read_object(root.get(), "", 0);
    return std::move(tree_);
  }

 private:
  [[noreturn]] void fail(std::string_view key, std::string_view what) const {
    throw InvalidInput(concat(file_, ": ", key, ": ", what));
  }
  [[nodiscard]] std::string damaged(std::string_view key) const {
    return concat(file_, ": ", key, ": cannot be read; the file is damaged");
  }

  /// `path` is "" for the root, so that path + "/" + name is right everywhere.
  void read_object(hid_t object, const std::string& path, int depth) {
    const std::string shown = path.empty() ? "/" : path;
    H5O_info_t info{};
    hdf5_check(H5Oget_info1(object, &info), damaged(shown));
    if (!seen_.insert(info.addr).second) fail(shown, "the same object under two names; refused");
    if (depth > kMaxDepth) fail(shown, concat("groups nested deeper than ", kMaxDepth));
    read_attributes(object, path.empty() ? "/" : path);
    if (info.type == H5O_TYPE_DATASET) {
      read_dataset(object, path);
    } else if (info.type == H5O_TYPE_GROUP) {
      if (!path.empty()) tree_.groups.insert(path);
      read_group(object, path, depth);
    } else {
      fail(shown, "neither a group nor a dataset; refused");
    }
  }

  void read_group(hid_t group, const std::string& path, int depth) {
    const std::string shown = path.empty() ? "/" : path;
    std::vector<std::string> names;
    hsize_t position = 0;
    hdf5_check(H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, &position, collect_name<H5L_info_t>, &names),
               damaged(shown));
    for (const std::string& name : names) {
      check_name(shown, name);
      const std::string child = concat(path, "/", name);
      H5L_info_t link{};
      hdf5_check(H5Lget_info(group, name.c_str(), &link, H5P_DEFAULT), damaged(child));
      // A soft or external link could lead anywhere, out of this file too.
      if (link.type != H5L_TYPE_HARD) fail(child, "a link to another place; refused");
      const Hdf5Handle object(H5Oopen(group, name.c_str(), H5P_DEFAULT), H5Oclose, damaged(child));
      read_object(object.get(), child, depth + 1);
    }
  }

  void read_attributes(hid_t object, const std::string& path) {
    std::vector<std::string> names;
    hsize_t position = 0;
    hdf5_check(H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, &position, collect_name<H5A_info_t>, &names),
               damaged(path));
    for (const std::string& name : names) {
      check_name(path, name);
      const std::string key = attribute_key(path, name);
      const Hdf5Handle attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose, damaged(key));
      const Hdf5Handle type(H5Aget_type(attribute.get()), H5Tclose, damaged(key));
      const Hdf5Handle space(H5Aget_space(attribute.get()), H5Sclose, damaged(key));
      const auto read = [&](hid_t memory_type, void* out) {
        return H5Aread(attribute.get(), memory_type, out);
      };
      tree_.values[key] = read_value(key, type.get(), space.get(), true, read);
    }
  }

  void read_dataset(hid_t dataset, const std::string& path) {
    const Hdf5Handle type(H5Dget_type(dataset), H5Tclose, damaged(path));
    const Hdf5Handle space(H5Dget_space(dataset), H5Sclose, damaged(path));
    const Hdf5Handle creation(H5Dget_create_plist(dataset), H5Pclose, damaged(path));
    check_storage(dataset, creation.get(), type.get(), space.get(), path);
    const auto read = [&](hid_t memory_type, void* out) {
      return H5Dread(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out);
    };
    tree_.values[path] = read_value(path, type.get(), space.get(), false, read);
  }

  /// Chunked with Fletcher-32 alone, every chunk written, none larger than the file.
  void check_storage(hid_t dataset, hid_t creation, hid_t type, hid_t space, const std::string& path) const {
    const int filters =
        H5Pget_layout(creation) == H5D_CHUNKED ? hdf5_check(H5Pget_nfilters(creation), damaged(path)) : 0;
    bool fletcher = false;
    for (int i = 0; i < filters; ++i) {
      unsigned flags = 0;
      unsigned configuration = 0;
      std::size_t values = 0;
      const H5Z_filter_t filter = H5Pget_filter2(creation, static_cast<unsigned>(i), &flags, &values, nullptr,
                                                 0, nullptr, &configuration);
      if (filter != H5Z_FILTER_FLETCHER32)
        fail(path, concat("carries the filter ", filter, "; only Fletcher-32 is allowed"));
      fletcher = true;
    }
    if (!fletcher)
      fail(path, "carries no Fletcher-32 checksum; it was not written by kvcal, or was rewritten since");
    std::array<hsize_t, kMaxDimensions> chunk{};
    const int dimensions = hdf5_check(H5Pget_chunk(creation, kMaxDimensions, chunk.data()), damaged(path));
    std::uint64_t chunk_bytes = H5Tget_size(type);
    for (int i = 0; i < std::min(dimensions, kMaxDimensions); ++i) {
      chunk_bytes = base::checked_multiply<std::uint64_t>(chunk_bytes, chunk[static_cast<std::size_t>(i)],
                                                          concat(file_, ": ", path));
    }
    const auto elements =
        static_cast<std::uint64_t>(hdf5_check(H5Sget_simple_extent_npoints(space), damaged(path)));
    const std::uint64_t bytes =
        base::checked_multiply<std::uint64_t>(elements, H5Tget_size(type), concat(file_, ": ", path));
    if (chunk_bytes > file_bytes_ || bytes > H5Dget_storage_size(dataset)) {
      fail(path, concat("its size of ", bytes, " bytes is more than the file stores for it"));
    }
  }

  void check_name(std::string_view parent, const std::string& name) const {
    const bool plain = std::ranges::all_of(name, [](char c) {
      return static_cast<unsigned char>(c) >= 0x20 && c != '@' && c != '/' && c != 0x7f;
    });
    if (name.empty() || !plain || !is_utf8(name))
      fail(parent, "holds a name with characters that schema 1 does not allow");
  }

  /// The shape, with the data's size taken off what the file can still hold.
  std::vector<std::int64_t> read_shape(const std::string& key, hid_t space, std::uint64_t element_bytes) {
    const H5S_class_t kind = H5Sget_simple_extent_type(space);
    if (kind != H5S_SCALAR && kind != H5S_SIMPLE) fail(key, "is empty (it has no shape)");
    const int dimensions = hdf5_check(H5Sget_simple_extent_ndims(space), damaged(key));
    if (dimensions > kMaxDimensions)
      fail(key, concat("has ", dimensions, " dimensions; expected ", kMaxDimensions, " at most"));
    std::array<hsize_t, kMaxDimensions> extents{};
    hdf5_check(H5Sget_simple_extent_dims(space, extents.data(), nullptr), damaged(key));
    std::vector<std::int64_t> shape;
    for (int i = 0; i < dimensions; ++i) {
      shape.push_back(
          base::checked_cast<std::int64_t>(extents[static_cast<std::size_t>(i)], concat(file_, ": ", key)));
    }
    const auto count = static_cast<std::uint64_t>(base::element_count(shape, concat(file_, ": ", key)));
    const std::uint64_t bytes =
        base::checked_multiply<std::uint64_t>(count, element_bytes, concat(file_, ": ", key));
    if (bytes > remaining_) fail(key, concat("is said to take ", bytes, " bytes, more than the file has"));
    remaining_ -= bytes;
    return shape;
  }

  template <typename Read>
  Hdf5Value read_value(const std::string& key, hid_t type, hid_t space, bool attribute, const Read& read) {
    if (H5Tget_class(type) == H5T_STRING) return read_text(key, type, space, attribute, read);
    for (const Hdf5Type& known : hdf5_types()) {
      if (hdf5_check(H5Tequal(type, known.id), damaged(key)) == 0) continue;
      Hdf5Value value{std::string(known.name), read_shape(key, space, known.bytes), {}};
      value.data.resize(static_cast<std::size_t>(base::element_count(value.shape, key)) * known.bytes);
      if (!value.data.empty()) hdf5_check(read(known.id, value.data.data()), damaged(key));
      return value;
    }
    fail(key,
         "has an element type that schema 1 does not allow; expected little-endian integers, float32, "
         "float64 or text");
  }

  /// Our own text has a fixed length, which HDF5 keeps under a checksum. Text of variable length, as h5py
  /// writes it, lies in a heap without one, and is read so that an edited file is refused for what was
  /// edited.
  template <typename Read>
  Hdf5Value read_text(const std::string& key, hid_t type, hid_t space, bool attribute, const Read& read) {
    const bool variable = hdf5_check(H5Tis_variable_str(type), damaged(key)) > 0;
    if (variable && !attribute) fail(key, "text of variable length in a dataset; refused");
    if (H5Tget_strpad(type) == H5T_STR_SPACEPAD) fail(key, "text padded with spaces; refused");
    const std::size_t width = H5Tget_size(type);
    Hdf5Value value{"string", read_shape(key, space, width), {}};
    const auto count = static_cast<std::size_t>(base::element_count(value.shape, key));
    std::vector<char> raw(count * width);
    const VariableTexts held(variable && count > 0 ? raw.data() : nullptr, type, space);
    if (count > 0) hdf5_check(read(type, raw.data()), damaged(key));
    for (std::size_t i = 0; i < count; ++i) {
      std::string_view text(raw.data() + i * width, width);
      if (variable) {
        const char* pointer = nullptr;
        std::memcpy(&pointer, raw.data() + i * width, sizeof(pointer));
        text = pointer == nullptr ? std::string_view() : std::string_view(pointer);
      }
      append_text(key, text, value);
    }
    if (!is_utf8(value.text())) fail(key, "is not UTF-8 text");
    return value;
  }

  void append_text(const std::string& key, std::string_view text, Hdf5Value& value) const {
    const std::string_view content = text.substr(0, text.find('\0'));
    if (text.find_first_not_of('\0', content.size()) != std::string_view::npos)
      fail(key, "has text after its end");
    const auto bytes = std::as_bytes(std::span(content.data(), content.size()));
    value.data.insert(value.data.end(), bytes.begin(), bytes.end());
    if (!value.shape.empty()) value.data.push_back(std::byte{0});
  }

  std::string file_;
  std::uint64_t remaining_;
  std::uint64_t file_bytes_;
  std::set<haddr_t> seen_;
  Hdf5Tree tree_;
};

/// HDF5's signature stands at byte 0, or after a user block of 512, 1024, 2048, ... bytes.
bool has_signature(std::span<const std::byte> bytes) {
  constexpr std::string_view kSignature = "\x89HDF\r\n\x1a\n";
  for (std::size_t at = 0; at + kSignature.size() <= bytes.size(); at = at == 0 ? 512 : 2 * at) {
    if (std::memcmp(bytes.data() + at, kSignature.data(), kSignature.size()) == 0) return true;
  }
  return false;
}

}  // namespace

Hdf5Tree read_hdf5_tree(const std::filesystem::path& path) {
  const std::string file = path.string();
  const std::vector<std::byte> content = base::read_file(path, kMaxFileBytes);
  const std::span<const std::byte> bytes = content;
  if (!has_signature(bytes))
    throw InvalidInput(concat(file, ": not an HDF5 file; expected a codebook written by kvcal"));
  check_hdf5_image(bytes, file);
  const Hdf5Session session;
  const std::string what = concat(file, ": a damaged or truncated HDF5 file");
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, what);
  // From a copy in memory, so that what is checked is what is read, whatever happens to the file meanwhile.
  hdf5_check(H5Pset_fapl_core(access.get(), 1 << 16, 0), what);
  hdf5_check(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG), what);
  hdf5_check(H5Pset_file_image(access.get(), const_cast<std::byte*>(bytes.data()), bytes.size()), what);
  // With an image HDF5 refuses the name of a file that exists: below a file, none can.
  const std::filesystem::path name = path / "image";
  const Hdf5Handle opened(H5Fopen(name.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose, what);
  return Reader(file, bytes.size()).read(opened.get());
}

}  // namespace kvcal::formats
