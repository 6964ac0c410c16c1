// Reads a codebook; prints "ok" or the reason of its refusal, for codebook_h5py_test.py.
#include <exception>
#include <iostream>

#include "formats/codebook.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  kvcal::formats::skip_hdf5_exit();
  try {
    const kvcal::formats::Codebook codebook = kvcal::formats::read_codebook(argv[1]);
    std::cout << "ok " << codebook.content_sha256 << '\n';
    return 0;
  } catch (const std::exception& error) {
    std::cout << error.what() << '\n';
    return 1;
  }
}
