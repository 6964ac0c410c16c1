#include <algorithm>
#include <cstdlib>
#include <utility>

#include "base/error.h"
#include "base/new_file.h"
#include "formats/internal/hdf5_handle.h"
#include "formats/internal/hdf5_tree.h"
#include "formats/internal/hdf5_types.h"

namespace kvcal::formats {
namespace {

using base::concat;

// More attributes or links than this in one object would move to a heap:
// kept beside the object, the file stays small.
constexpr unsigned kMaxCompact = 65000;

/// Takes over the memory in which HDF5's core driver built the file, when it closes it. (H5Fget_file_image
/// gives a superblock whose checksum is wrong with the format of HDF5 1.10.)
class ImageOwner {
 public:
  ImageOwner() = default;
  ~ImageOwner() { std::free(memory_); }
  ImageOwner(const ImageOwner&) = delete;
  ImageOwner& operator=(const ImageOwner&) = delete;

  H5FD_file_image_callbacks_t callbacks() {
    return {[](std::size_t size, H5FD_file_image_op_t, void*) { return std::malloc(size); },
            nullptr,
            [](void* memory, std::size_t size, H5FD_file_image_op_t, void*) {
              return std::realloc(memory, size);
            },
            [](void* memory, H5FD_file_image_op_t operation, void* self) {
              if (operation == H5FD_FILE_IMAGE_OP_FILE_CLOSE) {
                std::swap(memory, static_cast<ImageOwner*>(self)->memory_);
              }
              std::free(memory);
              return herr_t{0};
            },
            [](void* self) { return self; },
            [](void*) { return herr_t{0}; },
            this};
  }
  [[nodiscard]] std::span<const std::byte> bytes(std::size_t size) const {
    return {static_cast<const std::byte*>(memory_), size};
  }

 private:
  void* memory_ = nullptr;
};

/// A property list for objects of a kind: without times, with attributes kept in the object's header.
Hdf5Handle creation_list(hid_t kind, const std::string& what) {
  Hdf5Handle list(H5Pcreate(kind), H5Pclose, what);
  hdf5_check(H5Pset_obj_track_times(list.get(), false), what);
  hdf5_check(H5Pset_attr_phase_change(list.get(), kMaxCompact, 0), what);
  return list;
}

class Writer {
 public:
  Writer(std::string file, hid_t id) : file_(std::move(file)), id_(id) {}

  void write(const Hdf5Tree& tree) const {
    for (const std::string& group : tree.groups) make_group(group);
    // Attributes belong to datasets, too: those first.
    for (const auto& [key, value] : tree.values) {
      if (key.find('@') == std::string::npos) make_dataset(key, value);
    }
    for (const auto& [key, value] : tree.values) {
      if (key.find('@') != std::string::npos) make_attribute(key, value);
    }
  }

 private:
  [[nodiscard]] std::string what(const std::string& key) const {
    return concat(file_, ": ", key, ": cannot be written");
  }

  void make_group(const std::string& path) const {
    const Hdf5Handle creation = creation_list(H5P_GROUP_CREATE, what(path));
    hdf5_check(H5Pset_link_phase_change(creation.get(), kMaxCompact, 0), what(path));
    const Hdf5Handle group(H5Gcreate2(id_, path.c_str(), H5P_DEFAULT, creation.get(), H5P_DEFAULT), H5Gclose,
                           what(path));
  }

  void make_dataset(const std::string& path, const Hdf5Value& value) const {
    const std::vector<hsize_t> extents(value.shape.begin(), value.shape.end());
    if (extents.empty() || std::ranges::find(extents, hsize_t{0}) != extents.end()) {
      throw base::InvalidInput(concat(what(path), ": a dataset needs at least one element"));
    }
    const int dimensions = static_cast<int>(extents.size());
    const Hdf5Handle creation = creation_list(H5P_DATASET_CREATE, what(path));
    // One chunk: filters need chunks, and the index of one is a checksummed part of the header.
    hdf5_check(H5Pset_chunk(creation.get(), dimensions, extents.data()), what(path));
    hdf5_check(H5Pset_fletcher32(creation.get()), what(path));
    const Hdf5Handle space(H5Screate_simple(dimensions, extents.data(), nullptr), H5Sclose, what(path));
    const Hdf5Handle type = element_type(path, value);
    const Hdf5Handle dataset(
        H5Dcreate2(id_, path.c_str(), type.get(), space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT),
        H5Dclose, what(path));
    hdf5_check(H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, value.data.data()),
               what(path));
  }

  void make_attribute(const std::string& key, const Hdf5Value& value) const {
    const std::size_t at = key.find('@');
    const std::vector<hsize_t> extents(value.shape.begin(), value.shape.end());
    const Hdf5Handle space(extents.empty()
                               ? H5Screate(H5S_SCALAR)
                               : H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr),
                           H5Sclose, what(key));
    const Hdf5Handle type = element_type(key, value);
    const Hdf5Handle attribute(
        H5Acreate_by_name(id_, key.substr(0, at).c_str(), key.substr(at + 1).c_str(), type.get(), space.get(),
                          H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
        H5Aclose, what(key));
    const std::byte nothing{};  // an empty text is one zero byte
    const std::byte* data = value.data.empty() ? &nothing : value.data.data();
    hdf5_check(H5Awrite(attribute.get(), type.get(), data), what(key));
  }

  [[nodiscard]] Hdf5Handle element_type(const std::string& key, const Hdf5Value& value) const {
    if (value.type == "string") {
      if (!value.shape.empty())
        throw base::InvalidInput(concat(what(key), ": arrays of text are not written"));
      Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, what(key));
      hdf5_check(H5Tset_size(type.get(), std::max<std::size_t>(value.data.size(), 1)), what(key));
      hdf5_check(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), what(key));
      hdf5_check(H5Tset_cset(type.get(), H5T_CSET_UTF8), what(key));
      return type;
    }
    const auto types = hdf5_types();
    const auto known = std::ranges::find(types, value.type, &Hdf5Type::name);
    if (known == types.end())
      throw base::InvalidInput(concat(what(key), ": no element type '", value.type, "'"));
    return {H5Tcopy(known->id), H5Tclose, what(key)};
  }

  std::string file_;
  hid_t id_;
};

}  // namespace

void write_hdf5_tree(const std::filesystem::path& path, const Hdf5Tree& tree) {
  const std::string what = concat(path.string(), ": cannot be written");
  ImageOwner image;
  std::size_t size = 0;
  {
    const Hdf5Session session;
    // In memory: HDF5 itself does not recover from a disk that fills up under it.
    H5FD_file_image_callbacks_t callbacks = image.callbacks();
    const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, what);
    hdf5_check(H5Pset_fapl_core(access.get(), 1 << 20, 0), what);
    hdf5_check(H5Pset_file_image_callbacks(access.get(), &callbacks), what);
    hdf5_check(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG), what);
    // A fixed format, the first in which all metadata carry checksums: HDF5 1.10 and later read it.
    hdf5_check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110), what);
    const Hdf5Handle creation = creation_list(H5P_FILE_CREATE, what);
    hdf5_check(H5Pset_link_phase_change(creation.get(), kMaxCompact, 0), what);
    Hdf5Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()), H5Fclose, what);
    Writer(path.string(), file.get()).write(tree);
    hdf5_check(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), what);
    size = static_cast<std::size_t>(hdf5_check(H5Fget_file_image(file.get(), nullptr, 0), what));
    file.close(what);
  }
  base::write_file_atomically(path, image.bytes(size));
}

}  // namespace kvcal::formats
