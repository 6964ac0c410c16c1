// Writes the codebook of sample_codebook.h to the path that is given, for codebook_h5py_test.py.
#include "sample_codebook.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  kvcal::formats::write_codebook(argv[1], kvcal::formats::testing::sample_codebook());
  return 0;
}
