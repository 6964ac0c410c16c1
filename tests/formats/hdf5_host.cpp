// For codebook_h5py_test.py: a host program with an HDF5 file of its own, left open at its exit, that also
// reads a codebook with our library. HDF5 flushes what is open when it closes at exit, unless somebody
// forbade it.
#include <hdf5.h>

#include <cstdio>
#include <exception>

#include "formats/codebook.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const hid_t file = H5Fcreate(argv[1], H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hsize_t extent = 3;
  const hid_t space = H5Screate_simple(1, &extent, nullptr);
  const hid_t data = H5Dcreate2(file, "host", H5T_NATIVE_INT, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  const int values[] = {1, 2, 3};
  if (H5Dwrite(data, H5T_NATIVE_INT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0) return 1;
  try {
    std::printf("%zu\n", kvcal::formats::read_codebook(argv[2]).layers.size());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;  // nothing is closed
}
