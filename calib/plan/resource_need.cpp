#include "calib/plan/resource_need.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/checked.h"
#include "base/error.h"
#include "calib/plan/block_probe.h"
#include "calib/plan/machine.h"
#include "calib/plan/tensor_memory.h"
#include "fisher/head_loss.h"

namespace kvcal::calib {
namespace {

// Resident bytes for each byte of cached activations: blocks of the pool are a little larger than tensors.
constexpr double kCacheOverhead = 1.15;
// For each lane: its stack, and the buffers in which matrix products and attention pack their operands.
constexpr std::int64_t kLaneBytes = std::int64_t{8} << 20;
// What logits take beside their two products: exponentials, sums, gradients.
constexpr double kHeadSecondsPerLogit = 6e-9;
// A fit of one value at one outlier fraction, all bits, on one thread.
constexpr double kFitSecondsPerValue = 100e-9;
// Of a channel whose range is fitted: its parts (range_fit.h), and as points and weights.
constexpr std::int64_t kRangeBytes = 24 << 10;
// And its points (KeptPoints).
constexpr std::int64_t kPointBytes = 16, kMostKeptPoints = std::int64_t{128} << 20;
// How many times as long a fit takes then.
constexpr double kRangeFits = 1.4;
// What the solver holds beside points: histograms of 16 stripes, twice.
constexpr std::int64_t kSolverBytes = std::int64_t{40} << 20;

struct WeightSizes {
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;  // resident while in use
};

// A tensor stored in the compute type is used where it is mapped;
// another is converted, after which its pages are dropped.
WeightSizes weight_sizes(const RunShape& run, const std::vector<TensorSpec>& specs) {
  const auto dtype = run.weights.dtype() == at::kBFloat16 ? formats::Dtype::BF16 : formats::Dtype::F32;
  WeightSizes sizes;
  std::int64_t largest_mapped = 0;
  for (const TensorSpec& spec : specs) {
    const formats::TensorView& stored = run.weights.checkpoint().get(spec.name);
    const std::int64_t elements = base::element_count(stored.shape, stored.name);
    const auto mapped = static_cast<std::int64_t>(stored.data.size());
    sizes.parameters += elements;
    if (stored.dtype == dtype) {
      sizes.bytes += mapped;
    } else {
      sizes.bytes += elements * static_cast<std::int64_t>(at::elementSize(run.weights.dtype()));
      largest_mapped = std::max(largest_mapped, mapped);
    }
  }
  sizes.bytes += largest_mapped;
  return sizes;
}

/// What one layer makes a run hold, beside its weights: the most of any layer.
struct LayerSizes {
  // Numbers that a token leaves in the cache, and those of them that may be rotated.
  std::int64_t cached = 0, rotated = 0;
  // Pairs of thresholds that are found for a token, at most.
  std::int64_t token_scopes = 0;
  // For a sample, of attention with a window: it works in blocks, which the few tokens of the probe do not
  // fill: their outputs, and all of them together, forwards and backwards.
  std::int64_t window_bytes = 0;
};

LayerSizes largest_sizes(const RunShape& run) {
  const auto element = static_cast<std::int64_t>(at::elementSize(run.weights.dtype()));
  LayerSizes most;
  for (int l = 0; l < run.model.config().num_layers(); ++l) {
    LayerSizes sizes;
    for (const formats::CachedTensor& tensor : run.model.cache(l)) {
      sizes.cached += tensor.channels();
      if (tensor.thresholds == formats::ThresholdScope::token)
        sizes.token_scopes += tensor.heads;
      else
        sizes.rotated += tensor.channels();
    }
    const LayerConfig& layer = run.model.config().layers[static_cast<std::size_t>(l)];
    const bool windowed = layer.window > 0 && layer.window < run.seqlen;
    if (windowed) sizes.window_bytes = 4 * run.seqlen * layer.num_attention_heads * layer.head_dim * element;
    most.cached = std::max(most.cached, sizes.cached);
    most.rotated = std::max(most.rotated, sizes.rotated);
    most.token_scopes = std::max(most.token_scopes, sizes.token_scopes);
    most.window_bytes = std::max(most.window_bytes, sizes.window_bytes);
  }
  return most;
}

WeightSizes largest_layer(const RunShape& run) {
  WeightSizes largest;
  for (int layer = 0; layer < run.model.config().num_layers(); ++layer) {
    const WeightSizes sizes = weight_sizes(run, run.model.block_weights(layer));
    if (sizes.bytes > largest.bytes) largest = sizes;
  }
  return largest;
}

// Seconds of one thread for what is left, samples and fits together.
double thread_seconds(const RunShape& run, const RemainingWork& left, const BlockProbe& probe) {
  const auto tokens = static_cast<double>(run.tokens);
  const double ratio = static_cast<double>(run.seqlen) / kAttentionTokens;
  const double attention = static_cast<double>(run.samples) * ratio * ratio;
  double seconds = left.forward_layers() *
                   (tokens * probe.forward_seconds_per_token + attention * probe.attention_forward_seconds);
  seconds += left.backward_layers() *
             (tokens * probe.backward_seconds_per_token + attention * probe.attention_backward_seconds);
  if (left.head) {
    const int products = left.gradient.back() ? 2 : 1;
    const double parameters = static_cast<double>(run.model.config().vocab_size) *
                              static_cast<double>(run.model.config().hidden_size);
    seconds += products * 2 * tokens * parameters / probe.product_rate +
               tokens * static_cast<double>(run.model.config().vocab_size) * kHeadSecondsPerLogit;
  }
  const auto fits = static_cast<double>(std::count(left.fit.begin(), left.fit.end(), true));
  seconds += fits * tokens * static_cast<double>(largest_sizes(run).cached * run.outlier_fractions) *
             kFitSecondsPerValue *
             (run.ablation        ? 2
              : run.fitted_ranges ? kRangeFits
                                  : 1);
  return seconds;
}

// Of a fit: thresholds of every fraction with zeros and ranges, and those of the sample's halves; on each thread a
// channel's tokens, twice; parts of the ranges that are fitted; and what the solver holds and gathers.
std::int64_t fit_bytes(const RunShape& run, const LayerSizes& sizes) {
  const std::int64_t scopes =
      run.token_per_head ? sizes.token_scopes : std::min<std::int64_t>(1, sizes.token_scopes);
  const std::int64_t thresholds = scopes * (8 * run.outlier_fractions * (run.ablation ? 2 : 1) + 24);
  const std::int64_t kept = std::min(kMostKeptPoints, run.tokens * sizes.rotated * kPointBytes);
  const std::int64_t ranges = run.fitted_ranges ? sizes.rotated * kRangeBytes + kept : 0;
  return run.tokens * (thresholds + 8 * std::int64_t{run.threads} + sizes.cached) + ranges + kSolverBytes;
}

StageNeed loss_need(const RunShape& run, int lanes) {
  const std::int64_t rows = std::min(run.seqlen, fisher::head_rows(run.model.config().vocab_size));
  // A hidden state in, its gradient out.
  const std::int64_t ends = 2 * run.seqlen * run.model.config().hidden_size *
                            static_cast<std::int64_t>(at::elementSize(run.weights.dtype()));
  return {"loss", weight_sizes(run, run.model.head_weights()).bytes,
          lanes * (rows * run.model.config().vocab_size * run.head_bytes_per_logit + ends + kLaneBytes), 0,
          0};
}

/// Sets the memory that so many lanes need: that of the stage that needs most, for one comes after the other.
void need_memory(const RunShape& run, const RemainingWork& left, const BlockProbe& probe, int lanes,
                 ResourceNeed& need) {
  const std::int64_t seqlen = run.seqlen;
  const std::int64_t tokens = run.tokens;
  const LayerSizes sizes = largest_sizes(run);
  const std::int64_t layer_weights = largest_layer(run).bytes;
  const auto element = static_cast<std::int64_t>(at::elementSize(run.weights.dtype()));
  const std::int64_t numbers = sizes.cached * (run.with_gradients ? 2 : 1) + sizes.rotated;
  const std::int64_t capture = tokens * numbers * element;
  const StageNeed forward{
      "forward", layer_weights,
      lanes * (probe.forward_bytes.at(seqlen) + sizes.window_bytes + run.lane_bytes + kLaneBytes), 0, 0};
  const StageNeed loss = loss_need(run, lanes);
  // One layer is captured while the one before it is fitted.
  const StageNeed backward{"backward", layer_weights,
                           lanes * (probe.backward_bytes.at(seqlen) + sizes.window_bytes + kLaneBytes),
                           capture * std::min(2, left.backward_layers()), fit_bytes(run, sizes)};
  need.lanes = lanes;
  need.largest = {};
  if (left.forward_layers() > 0) need.largest = forward;
  if (left.head && loss.total() > need.largest.total()) need.largest = loss;
  if (left.backward_layers() > 0 && backward.total() > need.largest.total()) need.largest = backward;
  need.beside_tensors_bytes = backward.capture_bytes + backward.fit_bytes;
  need.memory_bytes = need.base_bytes + need.largest.total();
}

// Files still to be written. Those that an earlier run left are on the disk already.
std::int64_t disk_need(const RunShape& run, const RemainingWork& left) {
  constexpr std::int64_t kLayerFileBytes = 256 << 10;
  const std::int64_t activations = run.activation_bytes;
  const auto count = [](const std::vector<bool>& marks) {
    return std::count(marks.begin(), marks.end(), true);
  };
  // Of the gradients two exist together: a layer's input and output.
  return activations * (count(left.hidden) + std::min<std::int64_t>(2, count(left.gradient))) +
         2 * kLayerFileBytes * count(left.fit);
}

// A layer of each shape, and how many there are of it.
std::vector<std::pair<int, int>> distinct_layers(const RunShape& run) {
  const auto shapes_of = [&](int layer) {
    std::vector<std::vector<std::int64_t>> shapes;
    for (const TensorSpec& spec : run.model.block_weights(layer)) shapes.push_back(spec.shape);
    return shapes;
  };
  const auto same = [&](int a, int b) {
    const std::vector<LayerConfig>& layers = run.model.config().layers;
    return layers[static_cast<std::size_t>(a)] == layers[static_cast<std::size_t>(b)] &&
           run.model.cache(a) == run.model.cache(b) && shapes_of(a) == shapes_of(b);
  };
  std::vector<std::pair<int, int>> found;
  for (int layer = 0; layer < run.model.config().num_layers(); ++layer) {
    const auto known =
        std::ranges::find_if(found, [&](const auto& other) { return same(layer, other.first); });
    if (known == found.end())
      found.emplace_back(layer, 1);
    else
      ++known->second;
  }
  return found;
}

BytesByTokens larger(const BytesByTokens& a, const BytesByTokens& b) {
  return {std::max(a.fixed, b.fixed), std::max(a.per_token, b.per_token)};
}

// The most bytes of any layer, the mean time over all; `threads`: of one sample.
BlockProbe probe_layers(const RunShape& run, int threads) {
  Placement placement = run.weights.placement();
  placement.threads = std::max(1, threads);
  BlockProbe all;
  for (const auto& [layer, count] : distinct_layers(run)) {
    const BlockProbe one = probe_block(run.model, layer, placement, run.with_gradients);
    const double share = static_cast<double>(count) / run.model.config().num_layers();
    all.forward_bytes = larger(all.forward_bytes, one.forward_bytes);
    all.backward_bytes = larger(all.backward_bytes, one.backward_bytes);
    all.forward_seconds_per_token += share * one.forward_seconds_per_token;
    all.backward_seconds_per_token += share * one.backward_seconds_per_token;
    all.attention_forward_seconds += share * one.attention_forward_seconds;
    all.attention_backward_seconds += share * one.attention_backward_seconds;
    all.product_rate = one.product_rate;
  }
  return all;
}

void forget_weights(const RunShape& run) {
  for (const auto& [layer, count] : distinct_layers(run))
    run.weights.dont_need(run.model.block_weights(layer));
  TensorMemory::release();
  release_freed_memory();
}

}  // namespace

ResourceNeed estimate_need(const RunShape& run, const RemainingWork& left) {
  ResourceNeed need;
  const std::int64_t available = available_memory_bytes();
  need.memory_limit_bytes = run.memory_bytes ? std::min(*run.memory_bytes, available) : available / 5 * 4;
  need.disk_bytes = disk_need(run, left);
  need.disk_free_bytes = free_disk_bytes(run.work);
  if (left.text() == "nothing") return need;
  need.base_bytes = resident_bytes();
  need.largest = {"forward", largest_layer(run).bytes, 0, 0, 0};
  if (const StageNeed loss = loss_need(run, 1); left.head && loss.total() > need.largest.total())
    need.largest = loss;
  need.memory_bytes = need.base_bytes + need.largest.total();
  // One layer's weights, or the head, alone are too much: no trial, either.
  need.at_least = need.memory_bytes > need.memory_limit_bytes;
  if (need.at_least) return need;

  int lanes = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(run.threads, run.samples)));
  BlockProbe probe = probe_layers(run, run.threads / lanes);
  const double seconds = thread_seconds(run, left, probe);
  forget_weights(run);
  need.base_bytes = resident_bytes();
  need_memory(run, left, probe, lanes, need);
  while (lanes > 1 && need.memory_bytes > need.memory_limit_bytes) {
    --lanes;
    // Fewer samples have more threads each, and each thread has buffers.
    if (run.threads / lanes != run.threads / (lanes + 1)) {
      probe = probe_layers(run, run.threads / lanes);
      forget_weights(run);
    }
    need_memory(run, left, probe, lanes, need);
  }
  // Fits and samples share the threads. The last samples may leave some idle, and no two machines, or
  // moments, are the same.
  need.seconds_low = 0.6 * seconds / run.threads;
  need.seconds_high = 1.5 * seconds / need.lanes + 2;
  return need;
}

void check_need(const ResourceNeed& need, const RunShape& run) {
  const auto mib = [](std::int64_t bytes) { return base::concat((bytes + (1 << 20) - 1) >> 20, " MiB"); };
  if (run.memory_bytes && *run.memory_bytes > total_memory_bytes()) {
    throw base::WrongUsage(base::concat("--memory is ", mib(*run.memory_bytes), ", and this machine has ",
                                        mib(total_memory_bytes()), ", of which ",
                                        mib(available_memory_bytes()), " are free; give less"));
  }
  // What the process holds at the start differs by a page or two from run to run: who gives what the last one
  // asked for has given enough.
  if (need.memory_bytes > need.memory_limit_bytes + need.memory_limit_bytes / 50) {
    const StageNeed& stage = need.largest;
    throw base::SystemError(base::concat(
        "this run needs ", need.at_least ? "at least " : "", mib(need.memory_bytes), " of memory in its ",
        stage.stage, " pass (weights ", mib(stage.weights_bytes), ", samples ", mib(stage.working_bytes),
        ", what is captured ", mib(stage.capture_bytes), ", fits ", mib(stage.fit_bytes), ", the program ",
        mib(need.base_bytes), ") and may use ", mib(need.memory_limit_bytes),
        !run.memory_bytes                             ? " (80 % of what is free)"
        : *run.memory_bytes > need.memory_limit_bytes ? " (all that is free)"
                                                      : " (--memory)",
        "; lower ", run.smaller, ", or give it more"));
  }
  if (need.disk_bytes > need.disk_free_bytes) {
    throw base::SystemError(base::concat(
        "the work folder ", run.work.string(), " needs ", mib(need.disk_bytes), " of disk and ",
        mib(need.disk_free_bytes), " are free; free some, or name a folder on another disk with --work"));
  }
}

std::int64_t cache_bytes(const ResourceNeed& need) {
  const std::int64_t left = std::max<std::int64_t>(0, need.memory_limit_bytes - need.memory_bytes);
  return static_cast<std::int64_t>(static_cast<double>(left) / kCacheOverhead);
}

}  // namespace kvcal::calib
