// A safetensors file: its header, and every byte of every tensor.
#include "formats/safetensors.h"

#include <cstdint>

#include "base/checksum.h"
#include "fuzz/input_file.h"
#include "fuzz/target.h"

namespace kvcal::fuzz {

void read_input(std::span<const std::byte> bytes) {
  const InputFile input(bytes);
  const formats::SafetensorsFile file(input.path());
  std::uint64_t covered = 0;
  volatile std::uint64_t sum = 0;
  for (const formats::TensorView& tensor : file.tensors()) {
    sum = sum ^ base::checksum(tensor.data);
    covered += tensor.data.size();
    if (file.find(tensor.name) != &tensor) throw base::Error("find() misses the tensor " + tensor.name);
  }
  if (covered > bytes.size()) throw base::Error("the tensors are larger than the file");
}

}  // namespace kvcal::fuzz
