# The imported target kvcal::hdf5: HDF5's C library. CMake's own FindHDF5 needs the C language enabled, here and in every
# project that uses the installed package; this file, which is installed beside kvcal-config.cmake, needs nothing.
# HDF5_ROOT (a variable or the environment's) names another HDF5 than the system's.
if(NOT TARGET kvcal::hdf5)
  find_path(KVCAL_HDF5_INCLUDE hdf5.h HINTS ${HDF5_ROOT} ENV HDF5_ROOT PATH_SUFFIXES include hdf5/serial)
  find_library(KVCAL_HDF5_LIBRARY NAMES hdf5_serial hdf5 HINTS ${HDF5_ROOT} ENV HDF5_ROOT PATH_SUFFIXES lib hdf5/serial)
  mark_as_advanced(KVCAL_HDF5_INCLUDE KVCAL_HDF5_LIBRARY)
  if(NOT KVCAL_HDF5_INCLUDE OR NOT KVCAL_HDF5_LIBRARY)
    message(FATAL_ERROR "HDF5's C library was not found: install libhdf5-dev (Debian), or name yours with -DHDF5_ROOT=/path/to/hdf5.")
  endif()
  add_library(kvcal::hdf5 UNKNOWN IMPORTED GLOBAL)
  set_target_properties(kvcal::hdf5 PROPERTIES
    IMPORTED_LOCATION ${KVCAL_HDF5_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${KVCAL_HDF5_INCLUDE})
endif()
