#include "calib/engine/checkpoints.h"

#include <algorithm>

namespace kvcal::calib {

Checkpoints::Checkpoints(int num_layers)
    : layers(num_layers),
      hidden(static_cast<std::size_t>(num_layers) + 1),
      gradient(static_cast<std::size_t>(num_layers) + 1),
      cached(static_cast<std::size_t>(num_layers), true),
      fits(static_cast<std::size_t>(num_layers)) {}

int Checkpoints::layers_fitted() const {
  return static_cast<int>(std::ranges::count_if(fits, [](const auto& fit) { return fit.has_value(); }));
}

RemainingWork remaining_work(const Checkpoints& found, bool with_gradients) {
  const auto layers = static_cast<std::size_t>(found.layers);
  std::vector<bool> hidden_wanted(layers + 1), gradient_wanted(layers + 1);
  RemainingWork work{std::vector<bool>(layers + 1), false, std::vector<bool>(layers + 1),
                     std::vector<bool>(layers)};
  for (std::size_t l = 0; l < layers; ++l) {
    work.fit[l] = found.cached[l] && !found.fits[l].has_value();
    if (!work.fit[l]) continue;
    hidden_wanted[l] = true;
    gradient_wanted[l + 1] = with_gradients;
  }
  // Upwards: a gradient that is missing needs the one above it.
  for (std::size_t j = 1; j <= layers; ++j) {
    if (!gradient_wanted[j] || found.gradient[j]) continue;
    work.gradient[j] = true;
    hidden_wanted[j] = true;
    if (j < layers) gradient_wanted[j + 1] = true;
  }
  work.head = !found.losses.has_value() || work.gradient[layers];
  if (work.head) hidden_wanted[layers] = true;
  // Downwards: a hidden state that is missing needs the one below it.
  for (std::size_t j = layers + 1; j-- > 0;) {
    if (!hidden_wanted[j] || found.hidden[j]) continue;
    work.hidden[j] = true;
    if (j > 0) hidden_wanted[j - 1] = true;
  }
  return work;
}

}  // namespace kvcal::calib
