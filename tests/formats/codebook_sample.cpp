// Writes the codebook of sample_codebook.h to the path that is given, with --small before it the small one: for
// codebook_h5py_test.py and the fuzzers.
#include <span>
#include <string_view>

#include "sample_codebook.h"

int main(int argc, char** argv) {
  using namespace kvcal::formats;
  const std::span<char*> arguments(argv, static_cast<std::size_t>(argc));
  const bool small = argc == 3 && arguments[1] == std::string_view("--small");
  if (argc != 2 && !small) return 2;
  write_codebook(arguments.back(), small ? testing::small_codebook() : testing::sample_codebook());
  return 0;
}
