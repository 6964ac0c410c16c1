#include "cuda/vector_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "cuda/bit_pack.h"
#include "cuda/kernels/quantile.h"

namespace kvcal::codec {
namespace {

void check_finite(std::span<const float> x) {
  for (std::size_t c = 0; c < x.size(); ++c) {
    if (!std::isfinite(x[c])) {
      throw base::InvalidInput(
          base::concat("channel ", c, ": the value to quantise is ", x[c], ", which is not finite"));
    }
  }
}

void check_fraction(double fraction) {
  if (!(fraction >= 0 && fraction < 0.5)) {
    throw base::WrongUsage(
        base::concat("the outlier fraction is ", fraction, "; it is at least 0 and below 0.5"));
  }
}

std::uint16_t checked_half(float value, std::size_t channel, std::string_view what) {
  const std::uint16_t half = codec::float_to_half(value);
  if (!is_finite_half(half)) {
    throw base::InvalidInput(base::concat("channel ", channel, ": the ", what, " ", value,
                                          " overflows fp16, whose largest is ", codec::kHalfMax));
  }
  return half;
}

Affine checked_affine(float lower, float upper, std::size_t channel) {
  const Affine affine = affine_of(lower, upper);
  if (!is_finite_half(affine.scale) || !is_finite_half(affine.zero)) {
    throw base::InvalidInput(base::concat("channel ", channel, ": range or zero of the thresholds ", lower,
                                          " to ", upper, " overflow fp16, whose largest is ",
                                          codec::kHalfMax));
  }
  return affine;
}

std::uint8_t encode_one(float x, const Affine& affine, const Datatype& datatype) {
  const float scale = codec::half_to_float(affine.scale);
  const float u = normalise(x, codec::half_to_float(affine.zero), inverse_scale(scale));
  return static_cast<std::uint8_t>(nearest_code(u, datatype));
}

Outlier make_outlier(float x, std::size_t channel) {
  return {static_cast<std::uint32_t>(channel), checked_half(x, channel, "outlier")};
}

EncodedVector empty_encoded(std::size_t channels, const Datatype& datatype, bool keeps_outliers) {
  if (channels > UINT32_MAX) {
    throw base::InvalidInput(
        base::concat("a vector of ", channels, " channels: an outlier's index has 32 bits"));
  }
  EncodedVector encoded;
  encoded.bits = datatype.bits;
  encoded.channels = channels;
  encoded.keeps_outliers = keeps_outliers;
  return encoded;
}

std::vector<std::uint8_t> checked_codes(const EncodedVector& encoded, const Datatype& datatype) {
  if (encoded.bits != datatype.bits) {
    throw base::InvalidInput(
        base::concat("the vector has codes of ", encoded.bits, " bits, the datatype ", datatype.bits));
  }
  return unpack_codes(encoded.codes, encoded.channels, encoded.bits);
}

void restore_outliers(const EncodedVector& encoded, std::span<float> x) {
  for (const Outlier& outlier : encoded.outliers) {
    if (outlier.index >= x.size()) {
      throw base::InvalidInput(base::concat("an outlier at channel ", outlier.index, " of ", x.size()));
    }
    x[outlier.index] = codec::half_to_float(outlier.value);
  }
}

}  // namespace

Datatype make_datatype(std::span<const float> centroids, const QNorm& qnorm) {
  if (centroids.size() != 4 && centroids.size() != 8 && centroids.size() != 16) {
    throw base::InvalidInput(base::concat("a datatype has 4, 8 or 16 centroids, not ", centroids.size()));
  }
  if (!std::isfinite(qnorm.scale) || !std::isfinite(qnorm.offset)) {
    throw base::InvalidInput(
        base::concat("Q-Norm's scale ", qnorm.scale, " or offset ", qnorm.offset, " is not finite"));
  }
  Datatype datatype;
  datatype.bits = std::countr_zero(centroids.size());
  for (std::size_t i = 0; i < centroids.size(); ++i) {
    if (!std::isfinite(centroids[i]))
      throw base::InvalidInput(base::concat("centroid ", i, " is ", centroids[i]));
    if (i > 0 && centroids[i] < centroids[i - 1]) {
      throw base::InvalidInput(
          base::concat("centroid ", i, " is ", centroids[i], ", below the one before it"));
    }
    if (i > 0) datatype.midpoints[i - 1] = multiply_rn(add_rn(centroids[i - 1], centroids[i]), 0.5F);
    datatype.levels[i] = add_rn(multiply_rn(centroids[i], qnorm.scale), qnorm.offset);
    if (!std::isfinite(datatype.levels[i]) || (i > 0 && !std::isfinite(datatype.midpoints[i - 1]))) {
      throw base::InvalidInput(
          base::concat("centroid ", i, " is ", centroids[i], ": its arithmetic overflows"));
    }
  }
  return datatype;
}

std::size_t ValueOptions::outliers(std::size_t channels) const {
  const auto count = static_cast<unsigned>(channels / static_cast<std::size_t>(groups));
  if (outlier_fraction == 0 || count == 0) return 0;
  const QuantilePlace lower = quantile_place(outlier_fraction / 2, count);
  const QuantilePlace upper = quantile_place(1 - outlier_fraction / 2, count);
  // A threshold between two numbers has the nearer one beyond it; one that is a number does not.
  const unsigned beyond = lower.below + (lower.fraction > 0 ? 1 : 0) + (count - 1 - upper.below);
  return std::size_t{beyond} * static_cast<std::size_t>(groups);
}

float quantile(std::span<float> values, double q) {
  if (values.empty()) throw base::InvalidInput("the quantile of no values");
  if (!(q >= 0 && q <= 1)) throw base::WrongUsage(base::concat("a quantile lies in 0 to 1, not at ", q));
  const double position = q * static_cast<double>(values.size() - 1);
  const std::size_t below = std::min(static_cast<std::size_t>(position), values.size() - 1);
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(below);
  std::nth_element(values.begin(), middle, values.end());
  const double low = *middle;
  const double fraction = position - static_cast<double>(below);
  if (fraction <= 0 || below + 1 >= values.size()) return *middle;
  const double high = *std::min_element(middle + 1, values.end());
  return static_cast<float>(low + fraction * (high - low));
}

KeyNormaliser::KeyNormaliser(std::span<const float> lower, std::span<const float> upper,
                             double outlier_fraction)
    : lower_(lower.begin(), lower.end()),
      upper_(upper.begin(), upper.end()),
      keeps_outliers_(outlier_fraction > 0) {
  check_fraction(outlier_fraction);
  if (lower.size() != upper.size()) {
    throw base::InvalidInput(
        base::concat("thresholds: ", lower.size(), " lower and ", upper.size(), " upper ones"));
  }
  affines_.reserve(lower.size());
  for (std::size_t c = 0; c < lower.size(); ++c) {
    if (!std::isfinite(lower[c]) || !std::isfinite(upper[c]) || lower[c] > upper[c]) {
      throw base::InvalidInput(base::concat("channel ", c, ": the thresholds ", lower[c], " to ", upper[c],
                                            " are not finite and ascending"));
    }
    affines_.push_back(checked_affine(lower[c], upper[c], c));
  }
}

KeyNormaliser::KeyNormaliser(std::span<const float> lower, std::span<const float> upper,
                             double outlier_fraction, std::span<const float> scale,
                             std::span<const float> zero)
    : KeyNormaliser(lower, upper, outlier_fraction) {
  if (scale.size() != lower.size() || zero.size() != lower.size()) {
    throw base::InvalidInput(base::concat("ranges: ", scale.size(), " scales and ", zero.size(),
                                          " zeros for ", lower.size(), " channels"));
  }
  for (std::size_t c = 0; c < affines_.size(); ++c) {
    if (!(scale[c] >= 0))
      throw base::InvalidInput(base::concat("channel ", c, ": its scale ", scale[c], " is below 0, or none"));
    affines_[c] = {checked_half(scale[c], c, "scale"), checked_half(zero[c], c, "zero")};
  }
}

KeyNormaliser::KeyNormaliser(std::span<const Affine> affines)
    : affines_(affines.begin(), affines.end()), keeps_outliers_(false) {
  for (std::size_t c = 0; c < affines.size(); ++c) {
    if (!is_finite_half(affines[c].scale) || !is_finite_half(affines[c].zero))
      throw base::InvalidInput(base::concat("channel ", c, ": its scale or zero is not finite"));
  }
}

std::size_t EncodedVector::bytes() const {
  const std::size_t index_bytes = channels <= UINT16_MAX ? 2 : 4;
  const std::size_t outlier_bytes = keeps_outliers ? index_bytes + outliers.size() * (index_bytes + 2) : 0;
  return codes.size() + affines.size() * sizeof(Affine) + outlier_bytes;
}

EncodedVector encode_key(std::span<const float> x, const KeyNormaliser& normaliser,
                         const Datatype& datatype) {
  if (x.size() != normaliser.channels()) {
    throw base::InvalidInput(
        base::concat("a key of ", x.size(), " channels, thresholds of ", normaliser.channels()));
  }
  check_finite(x);
  EncodedVector encoded = empty_encoded(x.size(), datatype, normaliser.keeps_outliers());
  std::vector<std::uint8_t> codes(x.size());
  for (std::size_t c = 0; c < x.size(); ++c) {
    codes[c] = encode_one(x[c], normaliser.affines()[c], datatype);
    if (normaliser.is_outlier(c, x[c])) encoded.outliers.push_back(make_outlier(x[c], c));
  }
  encoded.codes = pack_codes(codes, datatype.bits);
  return encoded;
}

EncodedVector encode_value(std::span<const float> x, const ValueOptions& options, const Datatype& datatype) {
  check_fraction(options.outlier_fraction);
  if (options.groups < 1 || x.empty() || x.size() % static_cast<std::size_t>(options.groups) != 0) {
    throw base::WrongUsage(
        base::concat("a value of ", x.size(), " channels cannot be cut into ", options.groups, " groups"));
  }
  check_finite(x);
  EncodedVector encoded = empty_encoded(x.size(), datatype, options.outlier_fraction > 0);
  std::vector<std::uint8_t> codes(x.size());
  const std::size_t width = x.size() / static_cast<std::size_t>(options.groups);
  std::vector<float> sorted(width);
  for (std::size_t first = 0; first < x.size(); first += width) {
    std::copy_n(x.begin() + static_cast<std::ptrdiff_t>(first), width, sorted.begin());
    const float lower = quantile(sorted, options.outlier_fraction / 2);
    const float upper = quantile(sorted, 1 - options.outlier_fraction / 2);
    const Affine affine = checked_affine(lower, upper, first);
    for (std::size_t c = first; c < first + width; ++c) {
      codes[c] = encode_one(x[c], affine, datatype);
      if (encoded.keeps_outliers && (x[c] < lower || x[c] > upper))
        encoded.outliers.push_back(make_outlier(x[c], c));
    }
    encoded.affines.push_back(affine);
  }
  encoded.codes = pack_codes(codes, datatype.bits);
  return encoded;
}

std::vector<float> decode_key(const EncodedVector& encoded, const KeyNormaliser& normaliser,
                              const Datatype& datatype) {
  if (encoded.channels != normaliser.channels()) {
    throw base::InvalidInput(
        base::concat("a key of ", encoded.channels, " channels, thresholds of ", normaliser.channels()));
  }
  const std::vector<std::uint8_t> codes = checked_codes(encoded, datatype);
  std::vector<float> x(encoded.channels);
  for (std::size_t c = 0; c < x.size(); ++c) {
    const Affine& affine = normaliser.affines()[c];
    x[c] =
        dequantise(codes[c], codec::half_to_float(affine.scale), codec::half_to_float(affine.zero), datatype);
  }
  restore_outliers(encoded, x);
  return x;
}

std::vector<float> decode_value(const EncodedVector& encoded, const Datatype& datatype) {
  const std::size_t groups = encoded.affines.size();
  if (groups == 0 || encoded.channels % groups != 0) {
    throw base::InvalidInput(
        base::concat("a value of ", encoded.channels, " channels with ", groups, " scales"));
  }
  const std::vector<std::uint8_t> codes = checked_codes(encoded, datatype);
  std::vector<float> x(encoded.channels);
  const std::size_t width = encoded.channels / groups;
  for (std::size_t c = 0; c < x.size(); ++c) {
    const Affine& affine = encoded.affines[c / width];
    x[c] =
        dequantise(codes[c], codec::half_to_float(affine.scale), codec::half_to_float(affine.zero), datatype);
  }
  restore_outliers(encoded, x);
  return x;
}

}  // namespace kvcal::codec
