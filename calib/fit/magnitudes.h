// calib/fit/magnitudes.h: how large a tensor's numbers are: what the symmetric scales of other systems are made of.
#pragma once

#include "calib/engine/layer_capture.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// Of all tokens, sinks too, as they are cached; and where `rotated` is given after RoPE, as measured and as the
/// envelope of the pairs that RoPE turns. Quantiles are read off 4096 equal parts of the largest magnitude, with
/// linear interpolation in each. The best threshold is that of 40, from 0.22 to 1 times the largest magnitude; errors
/// are taken in 1024 parts, for either sign by itself (an envelope's lengths count half for each), weighted by squared
/// gradients, of a rotated number by the mean of its pair's: their angle is as good as random. The same for any number
/// of threads.
[[nodiscard]] formats::TensorMagnitudes find_magnitudes(const CapturedTensor& tensor,
                                                        const CapturedTensor* rotated, int threads);

/// What x comes back as where `threshold`, more than 0, is the largest of the type's range: scale threshold / 128
/// and codes -128 to 127 (int8), threshold / 8 and -8 to 7 (int4), threshold / 448 and E4M3 (fp8), each rounded to
/// the nearest, ties to even.
[[nodiscard]] double scaled_value(double x, double threshold, formats::ScaledType type);

}  // namespace kvcal::calib
