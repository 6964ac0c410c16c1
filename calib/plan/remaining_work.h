// calib/plan/remaining_work.h: what of the passes is left to do:
// all of it in a new run, less in one that goes on.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace kvcal::calib {

/// What is left of the passes. The forward pass computes the hidden states marked, ascending, each from the
/// one below it; then the head; then the backward pass visits layers from the last.
struct RemainingWork {
  std::vector<bool> hidden;    ///< [layers + 1]: to be computed
  bool head = false;           ///< its losses, or its gradient, are wanted
  std::vector<bool> gradient;  ///< [layers + 1]: to be computed; that of `layers` by the head
  std::vector<bool> fit;       ///< [layers]: to be captured and fitted

  [[nodiscard]] int forward_layers() const;   ///< blocks to be run forward
  [[nodiscard]] int backward_layers() const;  ///< blocks to be recomputed, for a capture or only a gradient
  /// Whether the backward pass comes to the layer, and the last one it comes to; -1: to none.
  [[nodiscard]] bool visits(int layer) const {
    return fit[static_cast<std::size_t>(layer)] || (layer > 0 && gradient[static_cast<std::size_t>(layer)]);
  }
  [[nodiscard]] int last_visited() const;
  /// "26 layers forward, the head, 27 layers backward"; "nothing" where nothing is.
  [[nodiscard]] std::string text() const;
};

}  // namespace kvcal::calib
