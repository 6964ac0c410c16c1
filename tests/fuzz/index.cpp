// model.safetensors.index.json, beside two shards that are as they should be.
#include <array>
#include <vector>

#include "formats/checkpoint.h"
#include "fuzz/input_file.h"
#include "fuzz/target.h"

namespace kvcal::fuzz {
namespace {

/// seeds.py makes its index for these.
void write_shards(InputFolder& folder) {
  const std::array<float, 4> values = {1, 2, 3, 4};
  const auto tensor = [&](const char* name) {
    return formats::TensorView{name, formats::Dtype::F32, {4}, std::as_bytes(std::span(values)), {}};
  };
  const std::vector<formats::TensorView> first = {tensor("a"), tensor("b")};
  const std::vector<formats::TensorView> second = {tensor("c")};
  formats::write_safetensors(folder.file("model-00001-of-00002.safetensors"), first);
  formats::write_safetensors(folder.file("model-00002-of-00002.safetensors"), second);
}

}  // namespace

void read_input(std::span<const std::byte> bytes) {
  static InputFolder folder;
  static const bool written = (write_shards(folder), true);
  (void)written;
  folder.write("model.safetensors.index.json", bytes);
  const formats::Checkpoint checkpoint(folder.path());
  for (const formats::TensorView& tensor : checkpoint.tensors()) (void)checkpoint.get(tensor.name);
  if (checkpoint.weights_sha256().size() != 64) throw base::Error("weights_sha256() is no SHA-256");
}

}  // namespace kvcal::fuzz
