// hook_dump MODEL TOKENS.npy REPLACEMENTS.safetensors OUT.safetensors: a float32 forward pass in which a hook
// replaces what the blocks cache, for comparison with another implementation. A tensor of REPLACEMENTS named
// S.L.NAME.POINT (sample, layer, key or value, cached or rotated; [tokens, heads * dim]) stands in for what
// the hook is shown there. OUT: what the hook was shown, before it replaced it, under the same names, and
// logits.S. A name in REPLACEMENTS that is never shown is passed over.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "calib/model/model.h"
#include "calib/tensor_output.h"
#include "calib/text/text_sampler.h"
#include "fisher/block.h"
#include "formats/safetensors.h"

namespace {

using namespace kvcal;

/// The hook of one block in one sample.
class Replacer final : public fisher::CacheHook {
 public:
  /// prefix: "S.L."; cache: what the layer caches. All must outlive the hook.
  Replacer(std::string prefix, const std::vector<formats::CachedTensor>& cache,
           const formats::SafetensorsFile& replacements, testing::TensorOutput& shown)
      : prefix_(std::move(prefix)), cache_(cache), replacements_(replacements), shown_(shown) {}

  [[nodiscard]] at::Tensor show(std::size_t tensor, fisher::CachePoint point, const at::Tensor& x) override {
    const std::string name =
        prefix_ + cache_.at(tensor).name + (point == fisher::CachePoint::cached ? ".cached" : ".rotated");
    shown_.add(name, x);
    const formats::TensorView* found = replacements_.find(name);
    if (found == nullptr) return x;
    if (x.sizes() != at::IntArrayRef(found->shape)) {
      throw base::InvalidInput(base::concat(found->file.string(), ": tensor ", name, " has shape ",
                                            at::IntArrayRef(found->shape), ", the block shows ", x.sizes()));
    }
    at::Tensor replacement = at::empty(found->shape, at::kFloat);
    formats::copy_to_float(
        found->dtype, found->data,
        std::span(replacement.mutable_data_ptr<float>(), static_cast<std::size_t>(replacement.numel())),
        name);
    return replacement;
  }

 private:
  std::string prefix_;
  const std::vector<formats::CachedTensor>& cache_;
  const formats::SafetensorsFile& replacements_;
  testing::TensorOutput& shown_;
};

void dump(const std::string& folder, const std::string& tokens, const std::string& replacements_file,
          const std::string& out) {
  const at::NoGradGuard no_graph;
  const auto model =
      calib::load_model(calib::read_model_definition(folder),
                        std::make_shared<const calib::WeightLoader>(folder, calib::Placement{}));
  const auto windows = calib::load_tokens(tokens, model->config().vocab_size);
  const formats::SafetensorsFile replacements(replacements_file);
  const auto head = model->load_head();
  testing::TensorOutput output;
  for (std::int64_t s = 0; s < windows.samples; ++s) {
    at::Tensor hidden = model->embed(windows.sample(s));
    for (int l = 0; l < model->config().num_layers(); ++l) {
      const auto cache = model->cache(l);
      Replacer hook(base::concat(s, '.', l, '.'), cache, replacements, output);
      hidden = model->load_block(l)->forward(hidden, &hook);
    }
    output.add("logits." + std::to_string(s), head->logits(hidden));
  }
  output.write(out);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: hook_dump MODEL TOKENS.npy REPLACEMENTS.safetensors OUT.safetensors\n");
    return 2;
  }
  try {
    dump(argv[1], argv[2], argv[3], argv[4]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
