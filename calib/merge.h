// calib/merge.h: one codebook from those of several runs over other samples or domains (docs/merging.md).
//
// No model and no text: what a codebook says of its own run is enough. Sensitivities add up, and so do the errors of a datatype and the
// weights at its levels; thresholds are quantiles, of which a few are known. The result tells how near it comes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "calib/merge/tensor_merge.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// What `kvcal merge` was asked to do; the fields are its options, with the same defaults.
struct MergeOptions {
  std::vector<std::filesystem::path> codebooks;  ///< at least two
  std::filesystem::path out;
  bool overwrite = false;  ///< replace an existing `out`
};

struct TensorNearness {
  int layer = 0;
  std::string tensor;
  Nearness nearness;
};

struct MergeReport {
  formats::Codebook codebook;                  ///< as written to `out`
  std::vector<formats::CalibrationInfo> runs;  ///< in the order of the files
  std::vector<TensorNearness> tensors;
  std::vector<MergedError> errors;  ///< by fraction and bits, over all tensors
  std::vector<std::string> warnings;
};

/// tokens_sha256 of every run that a codebook is made of; of one alone, its own.
[[nodiscard]] std::vector<std::string> calibrated_tokens(const formats::Codebook& codebook);

/// Reads, merges, writes `out`, whole or not at all. Throws base::WrongUsage for fewer than two codebooks, one given twice, an `out` among them;
/// base::InvalidInput, naming file, layer and tensor, where they are not of one model and one way of calibrating, and for a newer
/// schema_minor, of which parts would be lost; base::SystemError where `out` exists or can't be written.
[[nodiscard]] MergeReport merge(const MergeOptions& options);

}  // namespace kvcal::calib
