// The memory and time model of docs/memory.md: what a calibration takes, from the checkpoint's headers and
// the options alone.
#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>

#include "base/checked.h"
#include "base/error.h"
#include "calib/calibration_job.h"
#include "calib/machine.h"
#include "fisher/head_loss.h"

namespace kvcal::calib {
namespace {

// The program, libtorch and its thread pools before any model, measured at 145 MiB, and room for the
// allocator.
constexpr std::int64_t kProgramBytes = std::int64_t{200} << 20;
// Resident bytes for each byte of cached activations: the allocator keeps holes between them.
constexpr std::int64_t kCacheOverhead = 2;
// Copies in float32 of the logits that exist together: logits, log-softmax and the gradients of both.
constexpr std::int64_t kHeadCopies = 4;
// Copies of each activation that one block's graph holds at its peak, counted on calib/models/llama.cpp: of
// the hidden state (input, both norms and their wide forms, both sums, and gradients), of queries, keys and
// values (before and after rotation, wide and expanded), of the MLP's inner state.
constexpr std::int64_t kHiddenCopies = 14;
constexpr std::int64_t kAttentionCopies = 10;
constexpr std::int64_t kInnerCopies = 6;

struct WeightSizes {
  std::int64_t parameters = 0;
  std::int64_t bytes =
      0;  // resident while in use: the mapped file's pages, and a copy where the type differs
};

WeightSizes weight_sizes(const CalibrationJob& job, int layer) {
  const auto dtype = job.weights->dtype() == at::kBFloat16 ? formats::Dtype::BF16 : formats::Dtype::F32;
  WeightSizes sizes;
  for (const TensorSpec& spec : job.model->tensors(layer)) {
    const formats::TensorView& stored = job.weights->checkpoint().get(spec.name);
    const std::int64_t elements = base::element_count(stored.shape, stored.name);
    sizes.parameters += elements;
    sizes.bytes += static_cast<std::int64_t>(stored.data.size());
    if (stored.dtype != dtype)
      sizes.bytes += elements * static_cast<std::int64_t>(at::elementSize(job.weights->dtype()));
  }
  return sizes;
}

// Floating-point operations a second in a float32 or bfloat16 product, measured on this machine in a few
// milliseconds.
double measure_rate(at::ScalarType dtype) {
  constexpr std::int64_t kSize = 768;
  const at::Tensor a = at::ones({kSize, kSize}, dtype);
  double best = 0;
  for (int repeat = 0; repeat < 4; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    const at::Tensor product = at::matmul(a, a);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kSize * kSize * kSize / std::max(elapsed.count(), 1e-6));
  }
  return best;
}

// Model arithmetic: forward, recomputation and input gradients, 2 operations per parameter and token each,
// causal attention, the head both ways; and the fits at the rate of a few passes over the captures.
double estimate_seconds(const CalibrationJob& job, double layer_parameters, double head_parameters,
                        double kv_channels, double rate) {
  const auto tokens = static_cast<double>(job.windows.tokens());
  const double passes = job.options.sensitivity == "fisher" ? 3 : 2;
  const double attention =
      2.0 * static_cast<double>(job.windows.seqlen) * job.config.num_attention_heads * job.config.head_dim;
  const double layers = job.config.num_layers;
  const double operations =
      passes * tokens * layers * (2.0 * layer_parameters + attention) + 4.0 * tokens * head_parameters;
  constexpr double kFitSecondsPerValue = 120e-9;  // for each outlier fraction, on one thread
  const double fits = layers * tokens * kv_channels * static_cast<double>(job.options.outliers.size()) *
                      kFitSecondsPerValue / job.threads;
  // Fits run beside the backward pass on the same cores.
  return operations / rate + fits;
}

/// One stage after the other, with so many lanes.
StageNeed largest_stage(const CalibrationJob& job, const RemainingWork& left, int lanes) {
  const ModelConfig& config = job.config;
  const std::int64_t seqlen = job.windows.seqlen;
  const std::int64_t tokens = job.windows.tokens();
  const std::int64_t query = std::int64_t{config.num_attention_heads} * config.head_dim;
  const std::int64_t kv_channels = 2 * std::int64_t{config.num_kv_heads} * config.head_dim;
  const std::int64_t block = seqlen * 4 *
                             (config.hidden_size * kHiddenCopies + (query + kv_channels) * kAttentionCopies +
                              config.intermediate_size * kInnerCopies);
  StageNeed forward{"forward", weight_sizes(job, 0).bytes, block * lanes, 0, 0};
  StageNeed loss{
      "loss", weight_sizes(job, config.num_layers).bytes,
      std::min(seqlen, fisher::head_rows(config.vocab_size)) * config.vocab_size * 4 * kHeadCopies * lanes, 0,
      0};
  const std::int64_t capture = tokens * kv_channels * 4 * (job.with_gradients() ? 2 : 1);
  StageNeed backward = forward;
  backward.stage = "backward";
  // One layer is captured while the one before it is fitted.
  backward.capture_bytes = capture * std::min(2, left.backward_layers());
  // Thresholds of every token, their zeros and ranges, and the points that the solver gathers.
  backward.fit_bytes = tokens * config.num_kv_heads * 48 + capture / 4 + (std::int64_t{48} << 20);
  StageNeed largest;
  if (left.forward_layers() > 0) largest = forward;
  if (left.head && loss.total() > largest.total()) largest = loss;
  if (left.backward_layers() > 0 && backward.total() > largest.total()) largest = backward;
  return largest;
}

// Files still to be written. Those that an earlier run left are on the disk already.
std::int64_t disk_need(const CalibrationJob& job, const RemainingWork& left) {
  constexpr std::int64_t kLayerFileBytes = 256 << 10;
  const std::int64_t activations = job.checkpoint_shape().activation_bytes;
  const auto count = [](const std::vector<bool>& marks) {
    return std::count(marks.begin(), marks.end(), true);
  };
  // Of the gradients two exist together: a layer's input and output.
  return activations * (count(left.hidden) + std::min<std::int64_t>(2, count(left.gradient))) +
         2 * kLayerFileBytes * count(left.fit);
}

}  // namespace

ResourceNeed estimate_need(const CalibrationJob& job, const RemainingWork& left) {
  ResourceNeed need;
  need.base_bytes = kProgramBytes;
  const std::int64_t available = available_memory_bytes();
  need.memory_limit_bytes =
      job.options.memory_bytes ? std::min(*job.options.memory_bytes, available) : available / 5 * 4;
  const auto most = static_cast<int>(std::min<std::int64_t>(job.threads, job.windows.samples));
  for (need.lanes = std::max(1, most);; --need.lanes) {
    need.largest = largest_stage(job, left, need.lanes);
    need.memory_bytes = need.base_bytes + need.largest.total();
    if (need.lanes == 1 || need.memory_bytes <= need.memory_limit_bytes) break;
  }
  need.disk_bytes = disk_need(job, left);
  need.disk_free_bytes = free_disk_bytes(job.options.work);
  const double seconds = estimate_seconds(
      job, static_cast<double>(weight_sizes(job, 0).parameters),
      static_cast<double>(weight_sizes(job, job.config.num_layers).parameters),
      2.0 * job.config.num_kv_heads * job.config.head_dim, measure_rate(job.weights->dtype()));
  need.seconds_low = seconds;
  need.seconds_high = seconds;
  return need;
}

void check_need(const ResourceNeed& need, const CalibrationJob& job) {
  const auto mib = [](std::int64_t bytes) { return base::concat((bytes + (1 << 20) - 1) >> 20, " MiB"); };
  if (job.options.memory_bytes && *job.options.memory_bytes > total_memory_bytes()) {
    throw base::WrongUsage(base::concat("--memory is ", mib(*job.options.memory_bytes),
                                        ", and this machine has ", mib(total_memory_bytes()), ", of which ",
                                        mib(available_memory_bytes()), " are free; give less"));
  }
  if (need.memory_bytes > need.memory_limit_bytes) {
    const StageNeed& stage = need.largest;
    throw base::SystemError(
        base::concat("this run needs ", mib(need.memory_bytes), " of memory in its ", stage.stage,
                     " pass (weights ", mib(stage.weights_bytes), ", a sample ", mib(stage.working_bytes),
                     ", captured keys and values ", mib(stage.capture_bytes), ", fits ", mib(stage.fit_bytes),
                     ", the program ", mib(need.base_bytes), ") and may use ", mib(need.memory_limit_bytes),
                     !job.options.memory_bytes                             ? " (80 % of what is free)"
                     : *job.options.memory_bytes > need.memory_limit_bytes ? " (all that is free)"
                                                                           : " (--memory)",
                     "; lower --samples or --seqlen, or give it more"));
  }
  if (need.disk_bytes > need.disk_free_bytes) {
    throw base::SystemError(base::concat(
        "the work folder ", job.options.work.string(), " needs ", mib(need.disk_bytes), " of disk and ",
        mib(need.disk_free_bytes), " are free; free some, or name a folder on another disk with --work"));
  }
}

std::int64_t cache_bytes(const ResourceNeed& need) {
  return (need.memory_limit_bytes - need.memory_bytes) / kCacheOverhead;
}

}  // namespace kvcal::calib
