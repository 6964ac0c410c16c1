// A codebook, byte by byte: the guard before libhdf5, and libhdf5.
#include <filesystem>

#include "fuzz/codebook_again.h"
#include "fuzz/input_file.h"
#include "fuzz/target.h"

namespace kvcal::fuzz {

void read_input(std::span<const std::byte> bytes) {
  // libhdf5's closing at exit fails after damaged files.
  static const bool once = (formats::skip_hdf5_exit(), true);
  (void)once;
  const InputFile input(bytes);
  check_again(formats::read_codebook(input.path()), [](const formats::Codebook& codebook) {
    InputFolder folder;
    const std::filesystem::path copy = folder.file("again.h5");
    formats::write_codebook(copy, codebook);
    return formats::read_codebook(copy);
  });
}

}  // namespace kvcal::fuzz
