#include "apps/page/page_data.h"

#include <algorithm>
#include <set>
#include <vector>

#include "apps/cache_plan_view.h"
#include "apps/codebook_view.h"
#include "calib/codebook_summary.h"

namespace kvcal::apps {
namespace {

// A tensor's numbers of channels.
std::size_t channel_numbers(const formats::TensorCodebook& tensor) {
  std::size_t numbers = tensor.fisher_channel.size();
  for (const std::vector<formats::OutlierSet>* sets : {&tensor.outliers, &tensor.rotated})
    for (const formats::OutlierSet& set : *sets) numbers += set.lower.size() + set.upper.size();
  return numbers;
}

// Channels that share an entry: a power of two that divides every head, so that none reaches into the next one.
std::size_t channels_per_column(const formats::Codebook& codebook) {
  std::size_t numbers = 0, divisor = std::size_t{1} << 20;
  for (const formats::LayerCodebook& layer : codebook.layers) {
    for (const formats::TensorCodebook& tensor : layer.tensors) {
      numbers += channel_numbers(tensor);
      const auto dim = static_cast<std::size_t>(tensor.tensor.dim);
      divisor = std::min(divisor, dim & (~dim + 1));
    }
  }
  std::size_t channels = 1;
  while (channels < divisor && numbers / channels > static_cast<std::size_t>(kMostPageNumbers)) channels *= 2;
  return channels;
}

template <typename Merge>
void merge_columns(std::vector<float>& numbers, std::size_t channels, const Merge& merge) {
  std::vector<float> columns;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (i % channels == 0)
      columns.push_back(numbers[i]);
    else
      columns.back() = merge(columns.back(), numbers[i]);
  }
  numbers = std::move(columns);
}

void merge_columns(formats::TensorCodebook& tensor, std::size_t channels) {
  const auto least = [](float a, float b) { return std::min(a, b); };
  const auto greatest = [](float a, float b) { return std::max(a, b); };
  for (std::vector<formats::OutlierSet>* sets : {&tensor.outliers, &tensor.rotated}) {
    for (formats::OutlierSet& set : *sets) {
      merge_columns(set.lower, channels, least);
      merge_columns(set.upper, channels, greatest);
    }
  }
  merge_columns(tensor.fisher_channel, channels, [](float a, float b) { return a + b; });
}

}  // namespace

Json page_codebook(const formats::Codebook& codebook) {
  const std::size_t channels = channels_per_column(codebook);
  Json json = provenance_json(codebook);
  json["summary"] = summary_json(calib::summarise(codebook));
  json["channels_per_column"] = channels;
  json["layers"] = Json::array();
  for (formats::LayerCodebook layer : codebook.layers) {
    Json sums = layer_json(layer, Arrays::kNone);
    for (formats::TensorCodebook& tensor : layer.tensors)
      if (channels > 1) merge_columns(tensor, channels);
    Json packed = layer_json(layer, Arrays::kPacked);
    // Of the channels themselves, not of their columns.
    for (const formats::TensorCodebook& tensor : layer.tensors)
      packed[tensor.tensor.name]["fisher_sum"] = sums[tensor.tensor.name]["fisher_sum"];
    json["layers"].push_back(std::move(packed));
  }
  return json;
}

Json page_plans(const calib::CacheModel& model, const calib::CachePlanOptions& options) {
  std::set<std::int64_t> contexts = {options.context};
  for (const std::int64_t context : {8, 32, 128, 1024}) contexts.insert(context * 1024);
  Json plans = Json::array();
  calib::CachePlanOptions each = options;
  for (const std::int64_t context : contexts) {
    each.context = context;
    plans.push_back(cache_plan_json(calib::plan_cache(model, each)));
  }
  return plans;
}

Json page_plans(const formats::Codebook& codebook, const std::string& model) {
  calib::CacheModel cached{calib::cache_shape(codebook), {}};
  calib::CachePlanOptions options;
  if (!model.empty()) {
    const calib::CacheModel read = calib::read_cache_model(model);
    cached.weights = read.weights;
    cached.cache.max_positions = read.cache.max_positions;
    options.gpu_memory_bytes = kPageGpuMemory;
  }
  return page_plans(cached, options);
}

}  // namespace kvcal::apps
