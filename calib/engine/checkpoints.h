// calib/engine/checkpoints.h: what an earlier run left in its work folder,
// and what of the passes is left to do.
//
// A capture of layer l needs the hidden states at its input and the gradient at its output. A gradient comes
// from the head or from the backward of the layer above it, a hidden state from the layer below: so whatever
// is missing or damaged is made again from the nearest that is there, and nothing else is.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "calib/plan/remaining_work.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// A file of the work folder that is not what was written. The run that meets it removes it and goes on from
/// what is still there.
class DamagedCheckpoint : public base::InvalidInput {
 public:
  DamagedCheckpoint(std::filesystem::path file, const std::string& reason)
      : InvalidInput(base::concat(file.string(), ": ", reason)), file_(std::move(file)) {}
  [[nodiscard]] const std::filesystem::path& file() const { return file_; }

 private:
  std::filesystem::path file_;
};

/// Whole files of one run. Indices of hidden states and gradients: 0 to layers, `layers` being the head's.
struct Checkpoints {
  explicit Checkpoints(int num_layers = 0);

  int layers = 0;
  std::vector<bool> hidden;    ///< [layers + 1]
  std::vector<bool> gradient;  ///< [layers + 1]
  std::vector<bool> cached;    ///< [layers]: has a cache of its own, so a codebook
  std::vector<std::optional<formats::LayerCodebook>> fits;  ///< [layers]
  std::optional<std::vector<double>> losses;                ///< each sample's, of the head
  std::vector<DamagedCheckpoint> damaged;                   ///< files that count as missing above
  std::int64_t bytes = 0;                                   ///< of all files, damaged ones too

  [[nodiscard]] int layers_fitted() const;
};

/// with_gradients: sensitivities are wanted; without them a capture needs hidden states only.
[[nodiscard]] RemainingWork remaining_work(const Checkpoints& found, bool with_gradients);

}  // namespace kvcal::calib
