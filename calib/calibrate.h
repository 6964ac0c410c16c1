// calib/calibrate.h: the main job: a model and calibration tokens in, a codebook file out.
//
// Two passes over the layers with one layer in memory (docs/method.md): forward, keeping each layer's input;
// then backward from the last layer, whose keys, values and gradients are fitted while the next layer's
// backward runs. Everything that a killed run needs to go on lies in the work folder.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/choices.h"
#include "base/progress.h"
#include "calib/dtype_choice.h"
#include "calib/plan/remaining_work.h"
#include "calib/plan/resource_need.h"
#include "calib/text/bos_place.h"
#include "calib/text/json_documents.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// Over what the thresholds of values are found when they are quantised.
enum class ValueScope {
  token,  ///< all channels of a token
  head,   ///< the channels of one kv head of a token
};

/// What an error of an element weighs in a fit.
enum class Sensitivity {
  fisher,  ///< how much it changes the model's loss: the square F of its gradient
  none,    ///< 1: all the same; no gradients are computed
};

/// The units in which a fit counts errors (docs/method.md).
enum class FisherScale {
  range,  ///< those of the values: weights F s^2, where s is the range that normalised them
  none,   ///< those of the normalised values: weights F
};

/// Where a channel's levels lie.
enum class Ranges {
  threshold,  ///< between its thresholds
  fitted,     ///< where the weighted error of each datatype is least (docs/method.md)
};

/// How values are turned within each kv head before they are quantised.
enum class ValueRotation {
  none,
  hadamard,  ///< by Walsh-Hadamard matrices; attention's output is turned back once for each query head
};

/// The names of the values: what the options take and the codebook holds.
inline constexpr auto kValueScopes =
    std::to_array<base::Choice<ValueScope>>({{"token", ValueScope::token}, {"head", ValueScope::head}});
inline constexpr auto kSensitivities =
    std::to_array<base::Choice<Sensitivity>>({{"fisher", Sensitivity::fisher}, {"none", Sensitivity::none}});
inline constexpr auto kFisherScales =
    std::to_array<base::Choice<FisherScale>>({{"range", FisherScale::range}, {"none", FisherScale::none}});
inline constexpr auto kRanges =
    std::to_array<base::Choice<Ranges>>({{"threshold", Ranges::threshold}, {"fitted", Ranges::fitted}});
inline constexpr auto kValueRotations = std::to_array<base::Choice<ValueRotation>>(
    {{"none", ValueRotation::none}, {"hadamard", ValueRotation::hadamard}});

/// What `kvcal calibrate` was asked to do; the fields are its options, with the same defaults.
struct CalibrationOptions {
  std::string model;  ///< a folder, or a name (org/model) in the local Hugging Face cache
  std::vector<std::filesystem::path> texts;  ///< calibration texts (text/text_source.h); or
  std::filesystem::path tokens;              ///< an integer array [samples, seqlen] as .npy
  std::filesystem::path out;                 ///< the codebook file to write
  std::optional<std::int64_t> samples;       ///< windows; 16, or what `tokens` holds
  std::optional<std::int64_t> seqlen;        ///< tokens in a window; 2048, or what `tokens` holds
  std::vector<int> bits = {2, 3, 4};         ///< datatypes to fit, each of 2, 3, 4
  std::vector<double> outliers = {0, 0.01};  ///< outlier fractions, 0 <= p < 0.5
  /// First tokens of each window that are kept exact and left out of all statistics.
  int sinks = 1;
  /// Also what KVQuant's ablation takes: statistics that count sinks, thresholds after RoPE. Needs sinks, and ranges and
  /// values as in the paper: by the thresholds, not turned.
  bool ablation = false;
  std::string text_field = kDefaultTextField;  ///< of texts that are JSON: the member that holds the text
  BosPlace bos = BosPlace::automatic;          ///< automatic or none with `tokens`
  bool parse_special = true;                   ///< special tokens written in the text become their ids
  ValueScope value_scope = ValueScope::token;
  Sensitivity sensitivity = Sensitivity::fisher;
  FisherScale fisher_scale = FisherScale::range;
  std::optional<Ranges> ranges;  ///< nullopt: fitted, and threshold with `ablation`
  ValueRotation value_rotation = ValueRotation::none;
  DtypeChoice dtype = DtypeChoice::automatic;
  /// Where the model runs: "cpu"; this version has no other, and anything else is base::WrongUsage.
  std::string device = "cpu";
  int threads = 0;             ///< 0: all that the machine or its cgroup gives
  std::int64_t seed = 0;       ///< other than 0: shifts where the windows start
  std::filesystem::path work;  ///< checkpoints; empty: OUT.work. Removed on success
  /// Resident limit of the whole process; by default 80 % of what is free.
  std::optional<std::int64_t> memory_bytes;
  bool overwrite = false;  ///< replace an existing `out`
  bool dry_run = false;    ///< only plan

  [[nodiscard]] std::filesystem::path work_folder() const {
    return work.empty() ? std::filesystem::path(out.string() + ".work") : work;
  }
};

/// What will be done: shown before the work starts, and all that --dry-run gives.
struct CalibrationPlan {
  formats::ModelInfo model;
  formats::CalibrationInfo calibration;  ///< all but the loss
  std::filesystem::path model_folder;
  std::int64_t parameters = 0;
  ResourceNeed need;
  std::filesystem::path work;
  int layers_fitted = 0;             ///< by an earlier run, in `work`
  bool goes_on = false;              ///< an earlier run left anything in `work`
  RemainingWork left;                ///< what of the passes this run will do
  std::vector<std::string> damaged;  ///< files of `work` that are damaged, each with why and what it costs
};

/// The result, and how it came about.
struct CalibrationReport {
  CalibrationPlan plan;
  bool already_done = false;          ///< `out` was the finished result of the same run: nothing was done
  formats::Codebook codebook;         ///< as written to `out`; empty with dry_run
  std::vector<std::string> warnings;  ///< also sent to Progress::warning
  double seconds = 0, forward_seconds = 0, backward_seconds = 0, fit_seconds = 0;
};

/// Is told the plan before the work starts.
class PlanListener {
 public:
  virtual ~PlanListener() = default;
  virtual void on_plan(const CalibrationPlan& plan) = 0;
};

/// Runs it all: plan, passes, fits, file. With dry_run only the plan: nothing is written. Throws
/// base::WrongUsage, base::InvalidInput, base::SystemError (not enough memory or disk, before any work; a
/// full disk), base::Interrupted. After any of them the same command goes on from the work folder. One at a
/// time in a process: while it runs, libtorch's CPU tensors come from an allocator of its own; at the end the
/// number of libtorch's threads is what it was.
CalibrationReport calibrate(const CalibrationOptions& options, base::Progress& progress,
                            PlanListener* listener = nullptr);

}  // namespace kvcal::calib
