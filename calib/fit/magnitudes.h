// calib/fit/magnitudes.h: how large a tensor's numbers are: what the symmetric scales of other systems are made of.
#pragma once

#include "calib/engine/layer_capture.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// Of all tokens, sinks too, as they are cached; and where `rotated` is given after RoPE, as measured and as the
/// envelope of the pairs that RoPE turns. Quantiles are read off 4096 equal parts of the largest magnitude, with
/// linear interpolation in each; those of heads and the tensor are made of their channels' parts, each taken for its
/// middle. The best threshold is that of 40, from 0.22 to 1 times the largest magnitude; errors are taken in 512
/// parts, for either sign by itself (an envelope's lengths count half for each), weighted by squared gradients, of a
/// rotated number by the mean of its pair's: their angle is as good as random. The same for any number of threads.
[[nodiscard]] formats::TensorMagnitudes find_magnitudes(const CapturedTensor& tensor,
                                                        const CapturedTensor* rotated, int threads);

}  // namespace kvcal::calib
