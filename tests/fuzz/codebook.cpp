// A codebook, byte by byte: the guard before libhdf5, and libhdf5.
#include "fuzz/codebook_again.h"
#include "fuzz/target.h"

namespace kvcal::fuzz {

void read_input(std::span<const std::byte> bytes) {
  // libhdf5's closing at exit fails after damaged files.
  static const bool once = (formats::skip_hdf5_exit(), true);
  (void)once;
  const InputFile input(bytes);
  read_and_write_again(input.path());
}

}  // namespace kvcal::fuzz
