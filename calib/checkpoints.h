// calib/checkpoints.h: what an earlier run left in its work folder, and what of the passes is left to do.
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
#include "formats/codebook.h"

namespace kvcal::calib {

/// A file of the work folder that is not what was written. The run that meets it removes it and goes on from
/// what is still there.
class DamagedCheckpoint : public base::InvalidInput {
 public:
  DamagedCheckpoint(std::filesystem::path file, const std::string& reason)
      : InvalidInput(base::concat(file.string(), ": ", reason)), file_(std::move(file)), reason_(reason) {}
  [[nodiscard]] const std::filesystem::path& file() const { return file_; }
  [[nodiscard]] const std::string& reason() const { return reason_; }

 private:
  std::filesystem::path file_;
  std::string reason_;
};

/// Whole files of one run. Indices of hidden states and gradients: 0 to layers, `layers` being the head's.
struct Checkpoints {
  explicit Checkpoints(int num_layers = 0);

  int layers = 0;
  std::vector<bool> hidden;                                 ///< [layers + 1]
  std::vector<bool> gradient;                               ///< [layers + 1]
  std::vector<std::optional<formats::LayerCodebook>> fits;  ///< [layers]
  std::optional<std::vector<double>> losses;                ///< each sample's, of the head
  std::vector<DamagedCheckpoint> damaged;                   ///< files that count as missing above
  std::int64_t bytes = 0;                                   ///< of all files, damaged ones too

  [[nodiscard]] int layers_fitted() const;
};

/// What is left of the passes. The forward pass computes the hidden states marked, ascending, each from the
/// one below it; then the head; then the backward pass visits layers from the last.
struct RemainingWork {
  std::vector<bool> hidden;    ///< [layers + 1]: to be computed
  bool head = false;           ///< its losses, or its gradient, are wanted
  std::vector<bool> gradient;  ///< [layers + 1]: to be computed; that of `layers` by the head
  std::vector<bool> fit;       ///< [layers]: to be captured and fitted

  [[nodiscard]] int forward_layers() const;   ///< blocks to be run forward
  [[nodiscard]] int backward_layers() const;  ///< blocks to be recomputed, for a capture or only a gradient
  [[nodiscard]] bool visits(int layer) const {
    return fit[static_cast<std::size_t>(layer)] || (layer > 0 && gradient[static_cast<std::size_t>(layer)]);
  }
  /// "26 layers forward, the head, 27 layers backward"; "nothing" where nothing is.
  [[nodiscard]] std::string text() const;
};

/// with_gradients: sensitivities are wanted; without them a capture needs hidden states only.
[[nodiscard]] RemainingWork remaining_work(const Checkpoints& found, bool with_gradients);

}  // namespace kvcal::calib
