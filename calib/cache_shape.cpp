#include "calib/cache_shape.h"

#include <filesystem>
#include <memory>
#include <set>
#include <utility>

#include "base/checked.h"
#include "calib/model/model.h"
#include "calib/model/model_folder.h"

namespace kvcal::calib {
namespace {

// Of weights, as servers load them.
constexpr std::int64_t kWeightBytes = 2;

// Every tensor counts once: a tied projection has the embedding's name.
std::int64_t count_parameters(const Model& layout) {
  std::set<std::string> seen;
  std::int64_t count = 0;
  const auto add = [&](const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs)
      if (seen.insert(spec.name).second) count += base::element_count(spec.shape, spec.name);
  };
  add(layout.embedding_weights());
  for (int layer = 0; layer < layout.config().num_layers(); ++layer) add(layout.block_weights(layer));
  add(layout.head_weights());
  return count;
}

std::string served_dtype(const std::string& dtype) {
  if (dtype == "float32") return "float16";
  return dtype.empty() ? "bfloat16" : dtype;
}

}  // namespace

std::int64_t kept_tokens(std::int64_t window, std::int64_t context) {
  return window > 0 ? std::min(window, context) : context;
}

CacheModel read_cache_model(const std::string& model) {
  const std::filesystem::path path(model);
  const bool is_config = path.extension() == ".json" && std::filesystem::is_regular_file(path);
  const ModelFolder folder =
      is_config ? ModelFolder{path, std::filesystem::absolute(path).parent_path().filename().string()}
                : find_model_folder(model);
  const ModelLayout read = read_model_layout(is_config ? path : folder.path / "config.json");
  const std::unique_ptr<Model> layout = read.definition.make(nullptr);
  const ModelConfig& config = read.definition.config;
  CacheModel result;
  result.cache.model = folder.name;
  result.cache.architecture = config.architecture;
  result.cache.max_positions = config.max_positions;
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    const std::int64_t window = config.layers[static_cast<std::size_t>(layer)].window;
    if (auto tensors = layout->cache(layer); !tensors.empty())
      result.cache.layers.push_back({std::move(tensors), window, {}});
  }
  for (const double fraction : {0.0, 0.01})
    for (const int bits : {4, 3, 2}) result.cache.datatypes.push_back({bits, fraction, false});
  WeightsSize& weights = result.weights;
  weights.parameters = count_parameters(*layout);
  weights.source = read.quantised_weights ? "unknown" : "config";
  if (read.quantised_weights) return result;
  weights.dtype = served_dtype(config.weight_dtype);
  weights.bytes = base::checked_multiply(*weights.parameters, kWeightBytes, "the weights");
  return result;
}

CacheShape cache_shape(const formats::Codebook& codebook) {
  CacheShape shape;
  shape.model = codebook.model.name;
  shape.architecture = codebook.model.architecture;
  shape.sinks = codebook.calibration.sinks;
  shape.values_per_head = codebook.calibration.value_scope == "head";
  shape.datatypes = formats::held_datatypes(codebook);
  std::erase_if(shape.datatypes,
                [](const formats::DatatypeChoice& choice) { return choice.bits < 2 || choice.bits > 4; });
  for (const formats::LayerCodebook& layer : codebook.layers) {
    CachedLayer cached{{}, layer.window, {}};
    for (const formats::TensorCodebook& tensor : layer.tensors) {
      cached.tensors.push_back(tensor.tensor);
      if (!codebook.recipe) continue;
      const formats::TensorRecipe& recipe = *codebook.recipe->find(layer.index, tensor.tensor.name);
      cached.recipe.push_back({recipe.bits, recipe.fraction, false});
    }
    shape.layers.push_back(std::move(cached));
  }
  return shape;
}

}  // namespace kvcal::calib
