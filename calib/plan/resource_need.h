// calib/plan/resource_need.h: the memory, disk and time that a calibration will need,
// known before it starts (docs/memory.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "calib/plan/remaining_work.h"

namespace kvcal::calib {

class Model;
class WeightLoader;

/// Resident bytes at one stage of a run: "forward", "loss", "backward".
struct StageNeed {
  std::string stage;
  std::int64_t weights_bytes = 0;  ///< of the layer at hand, or the head, in the compute type
  std::int64_t working_bytes = 0;  ///< samples on their way through it, one to a lane
  std::int64_t capture_bytes = 0;  ///< keys, values and gradients of the layers in flight
  std::int64_t fit_bytes = 0;      ///< the fits that run beside the backward pass
  [[nodiscard]] std::int64_t total() const {
    return weights_bytes + working_bytes + capture_bytes + fit_bytes;
  }
};

/// What a run will need, known before it starts. Bytes.
struct ResourceNeed {
  std::int64_t base_bytes = 0;    ///< the program, its libraries, the tokens
  StageNeed largest;              ///< the stage that needs most
  std::int64_t memory_bytes = 0;  ///< peak resident: the two together, with no activations cached
  /// The limit is below what weights alone need: memory_bytes is the least, and no trial said the rest.
  bool at_least = false;
  std::int64_t memory_limit_bytes = 0;       ///< what the run may use
  std::int64_t beside_tensors_bytes = 0;     ///< captures and fits of the backward pass
  int lanes = 1;                             ///< samples computed side by side: as many as memory allows
  std::int64_t disk_bytes = 0;               ///< still to be written: work folder and codebook
  std::int64_t disk_free_bytes = 0;          ///< free where the work folder lies
  double seconds_low = 0, seconds_high = 0;  ///< between which the run will take, on an idle machine
};

/// Bytes for each logit that exists while a loss is taken: in float32 the log-softmax and two gradients, in the
/// compute type the logits and their gradient.
inline constexpr std::int64_t kLossBytesPerLogit = 16;

/// What the need depends on.
struct RunShape {
  const Model& model;
  const WeightLoader& weights;
  std::int64_t samples = 0, seqlen = 0;
  std::int64_t tokens = 0;  ///< of all samples, without padding
  bool with_gradients = true;
  int outlier_fractions = 0;
  bool ablation = false;              ///< each fit is made twice
  bool fitted_ranges = false;         ///< those by channel are fitted with their datatypes
  bool token_per_head = false;        ///< thresholds of a token are found for each head
  std::int64_t activation_bytes = 0;  ///< of one layer's hidden states or gradients, of all samples
  int threads = 1;
  std::optional<std::int64_t> memory_bytes = {};  ///< --memory
  std::filesystem::path work = {};
  /// What a job beside calibration holds for each lane while a block runs, and for each logit at the head.
  std::int64_t lane_bytes = 0;
  std::int64_t head_bytes_per_logit = kLossBytesPerLogit;
  const char* smaller = "--samples or --seqlen";  ///< what to lower where it is too much
};

/// From the checkpoint's headers, and a few tokens run through one block. Throws what loading it throws.
[[nodiscard]] ResourceNeed estimate_need(const RunShape& run, const RemainingWork& left);

/// Throws SystemError where the limit or the disk is too small, saying how much is needed; WrongUsage where
/// --memory is more than the machine has.
void check_need(const ResourceNeed& need, const RunShape& run);

/// The memory left for cached activations within the limit.
[[nodiscard]] std::int64_t cache_bytes(const ResourceNeed& need);

}  // namespace kvcal::calib
