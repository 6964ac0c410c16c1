// config.json, and the layout of the model that it describes.
#include "calib/model/model.h"

#include "fuzz/input_file.h"
#include "fuzz/target.h"

namespace kvcal::fuzz {
namespace {

void check(const std::vector<calib::TensorSpec>& specs) {
  for (const calib::TensorSpec& spec : specs) {
    if (spec.name.empty()) throw base::Error("a tensor without a name");
    for (const std::int64_t extent : spec.shape)
      if (extent <= 0) throw base::Error("a tensor of no elements: " + spec.name);
  }
}

}  // namespace

void read_input(std::span<const std::byte> bytes) {
  const InputFile input(bytes);
  const calib::ModelLayout layout = calib::read_model_layout(input.path());
  const auto model = layout.definition.make(nullptr);
  check(model->embedding_weights());
  check(model->head_weights());
  for (int layer = 0; layer < model->config().num_layers(); ++layer) {
    check(model->block_weights(layer));
    for (const formats::CachedTensor& tensor : model->cache(layer))
      if (tensor.channels() <= 0) throw base::Error("a cached tensor of no channels: " + tensor.name);
  }
  (void)model->config().sha256();
}

}  // namespace kvcal::fuzz
