// A NumPy array, and its elements as numbers.
#include "formats/npy.h"

#include "fuzz/input_file.h"
#include "fuzz/target.h"

namespace kvcal::fuzz {

void read_input(std::span<const std::byte> bytes) {
  const InputFile input(bytes);
  const formats::NpyFile file(input.path());
  const bool is_float = file.dtype() == formats::Dtype::F16 || file.dtype() == formats::Dtype::F32 ||
                        file.dtype() == formats::Dtype::F64;
  if (file.dtype() == formats::Dtype::BOOL) return;
  const std::size_t numbers = is_float ? file.floats().size() : file.integers().size();
  if (numbers != static_cast<std::size_t>(file.size())) throw base::Error("not as many numbers as elements");
}

}  // namespace kvcal::fuzz
