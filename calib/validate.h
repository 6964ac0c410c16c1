// calib/validate.h: what a codebook costs: perplexity and divergence of a model whose cache is stored by each
// of several methods, beside the model as it is (docs/validation.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "calib/dtype_choice.h"
#include "calib/plan/resource_need.h"
#include "calib/text/bos_place.h"
#include "calib/text/json_documents.h"
#include "calib/text/protocol.h"
#include "calib/validate/method_score.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// What `kvcal validate` was asked to do; the fields are its options, with the same defaults.
struct ValidationOptions {
  std::string model;                           ///< a folder, or a name in the local Hugging Face cache
  std::filesystem::path codebook;              ///< empty: only methods that need none
  std::vector<std::filesystem::path> texts;    ///< validation texts (text/text_source.h); or
  std::filesystem::path tokens;                ///< an integer array [windows, seqlen] as .npy
  std::optional<std::int64_t> seqlen;          ///< tokens in a window; 2048, or what `tokens` holds
  std::optional<std::int64_t> windows;         ///< up to 16 by default, 2 where kernels run on the CPU
  bool all_windows = false;                    ///< every window of the texts
  std::string text_field = kDefaultTextField;  ///< of texts that are JSON: the member that holds the text
  BosPlace bos = BosPlace::automatic;
  bool parse_special = true;
  Protocol protocol = Protocol::kvcal;
  std::vector<std::string> methods;  ///< by their names; empty: those by default. fp is always among them
  /// Each of the codebook's methods also in paged records, written by the CPU codec and by the kernels.
  bool kernels = false;
  bool per_layer_kl = false;  ///< also what each tensor of each layer alone costs
  /// Tokens that the model writes after each window's beginning, which methods then decode; 0: none.
  std::int64_t generate = 0;
  std::vector<std::int64_t> passkey;  ///< lengths of prompts, in tokens, that ask for a number hidden in them
  bool force = false;                 ///< a codebook of another model is used all the same
  DtypeChoice dtype = DtypeChoice::automatic;
  std::string device = "cpu";
  int threads = 0;
  std::optional<std::int64_t> memory_bytes;
  std::filesystem::path
      scratch;  ///< folder for hidden states beyond memory; empty: the system's for such files
};

/// Of one tensor of one layer, on the full-precision run's activations.
struct TensorReport {
  std::string name;
  double mse = 0;
  double relative = 0;             ///< sum (x - q)^2 / sum x^2
  std::optional<double> weighted;  ///< the same weighted by sensitivity, where the codebook has it
  double outliers_observed = 0;    ///< share of the numbers that could be outliers
  double outliers_nominal = 0;     ///< that the calibration kept apart
  double outliers_dropped = 0;  ///< share of those observed that found no slot and fell to the nearest code
  /// Whether the thresholds come from the calibration, so that another kind of text has more outliers; those of a
  /// token are found in it and always leave the same share.
  bool thresholds_calibrated = false;
  /// Of keys: the share of the attention of fp that falls on the same tokens (docs/validation.md).
  std::optional<double> attention_agreement;
  std::optional<MethodScore> alone;  ///< with nothing else stored, where it was asked
};

struct LayerReport {
  int layer = 0;
  std::vector<TensorReport> tensors;
};

/// What decoding costs: the model's own continuation, each token read from the cache as it stands at its step.
struct DecodingReport {
  MethodScore score;
  std::vector<MethodScore> windows;    ///< each by itself, what `score` is a mean of
  std::vector<MethodScore> positions;  ///< of each token after the prompt, over windows
};

/// Prompts of one length.
struct PasskeyReport {
  std::int64_t length = 0, prompts = 0, retrieved = 0;
};

struct MethodReport {
  std::string name;
  MethodScore score;
  std::vector<MethodScore> windows;  ///< each by itself: what methods differ by, paired
  double perplexity_delta = 0;       ///< from fp's
  /// Of that difference, over windows: a delta of less than twice this may be noise.
  double perplexity_delta_stderr = 0;
  double bits_per_value = 0;  ///< all bytes of the sequences, tables apart
  std::int64_t static_bytes = 0;
  std::optional<double> attention_agreement;  ///< the mean over layers
  std::vector<LayerReport> layers;
  std::optional<DecodingReport> decoding;  ///< where it was asked
  std::vector<PasskeyReport> passkey;      ///< of each length that was asked
};

/// What will be done: shown before the work starts.
struct ValidationPlan {
  std::string model;
  std::filesystem::path codebook;
  std::int64_t windows = 0, seqlen = 0, tokens = 0, scored = 0;
  std::int64_t generate = 0;
  std::vector<std::int64_t> passkey;
  std::string protocol, bos, dtype;
  std::vector<std::string> methods;
  std::string kernels;  ///< where those of methods run; empty: none does
  ResourceNeed need;
  /// Peak resident: the need, and the hidden states for which the limit leaves room.
  std::int64_t memory_bytes = 0;
};

struct ValidationReport {
  ValidationPlan plan;
  std::vector<MethodReport> methods;  ///< fp first, the others as they were asked
  std::vector<std::string> warnings;  ///< also sent to Progress::warning
  double seconds = 0;
};

class ValidationListener {
 public:
  virtual ~ValidationListener() = default;
  virtual void on_plan(const ValidationPlan& plan) = 0;
};

/// Runs it all. Nothing is written but a scratch file without a name. Throws base::WrongUsage; base::InvalidInput:
/// a codebook of another model (saying which of config and weights differs), a method that it cannot serve, a
/// value that is not finite, naming method and layer; base::SystemError; base::Interrupted. One at a time in a
/// process, as calibrate().
[[nodiscard]] ValidationReport validate(const ValidationOptions& options, base::Progress& progress,
                                        ValidationListener* listener = nullptr);

}  // namespace kvcal::calib
