// formats/internal/hdf5_types.h: the element types of schema 1, by numpy's name and as HDF5 stores them.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "formats/internal/hdf5_handle.h"

namespace kvcal::formats {

struct Hdf5Type {
  std::string_view name;
  std::size_t bytes;
  hid_t id;
};

/// A function, not a table: the identifiers exist once HDF5 has been started.
inline std::array<Hdf5Type, 10> hdf5_types() {
  return {{{"float32", 4, H5T_IEEE_F32LE},
           {"float64", 8, H5T_IEEE_F64LE},
           {"int8", 1, H5T_STD_I8LE},
           {"int16", 2, H5T_STD_I16LE},
           {"int32", 4, H5T_STD_I32LE},
           {"int64", 8, H5T_STD_I64LE},
           {"uint8", 1, H5T_STD_U8LE},
           {"uint16", 2, H5T_STD_U16LE},
           {"uint32", 4, H5T_STD_U32LE},
           {"uint64", 8, H5T_STD_U64LE}}};
}

}  // namespace kvcal::formats
