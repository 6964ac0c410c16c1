#include "calib/plan/remaining_work.h"

#include <algorithm>

#include "base/error.h"

namespace kvcal::calib {

int RemainingWork::forward_layers() const {
  // hidden[0] comes from the embedding.
  return static_cast<int>(std::count(hidden.begin() + 1, hidden.end(), true));
}

int RemainingWork::backward_layers() const {
  int count = 0;
  for (int layer = 0; layer < static_cast<int>(fit.size()); ++layer) count += visits(layer) ? 1 : 0;
  return count;
}

int RemainingWork::last_visited() const {
  for (int layer = 0; layer < static_cast<int>(fit.size()); ++layer) {
    if (visits(layer)) return layer;
  }
  return -1;
}

std::string RemainingWork::text() const {
  std::string text;
  const auto add = [&text](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  const auto layers = [](int count) { return base::concat(count, count == 1 ? " layer " : " layers "); };
  if (forward_layers() > 0) add(layers(forward_layers()) + "forward");
  if (head) add("the head");
  if (backward_layers() > 0) add(layers(backward_layers()) + "backward");
  return text.empty() ? "nothing" : text;
}

}  // namespace kvcal::calib
