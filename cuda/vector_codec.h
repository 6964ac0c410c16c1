// cuda/vector_codec.h: the CPU codec: one key vector or one value vector
// to codes, scales and outliers, and back.
//
// A vector is one token's keys or values of one layer, channels = kv_heads * head_dim. Keys are normalised
// per channel by thresholds from the codebook; values by thresholds found in the vector itself: the p/2 and
// 1 - p/2 quantiles, linear interpolation, over all channels (one group) or per kv head (a group each). What
// lies outside the thresholds is an outlier, kept exact but for its rounding to fp16; p = 0 means minimum and
// maximum and no outliers (KVQuant, sections 3.1 to 3.4). The arithmetic is that of codec_math.h.
//
// Every function throws base::InvalidInput where an input is NaN or infinite, where sizes disagree, or where
// something that is stored as fp16 overflows it (beyond 65504), naming the channel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/kernels/codec_math.h"

namespace kvcal::codec {

/// Q-Norm: a code dequantises to centroid * scale + offset; the default is none.
struct QNorm {
  float scale = 1.0F;
  float offset = 0.0F;
};

/// centroids: [4], [8] or [16] for 2, 3 or 4 bits, finite, ascending (repeated ones are allowed).
[[nodiscard]] Datatype make_datatype(std::span<const float> centroids, const QNorm& qnorm = {});

/// The q-quantile of values with linear interpolation, 0 <= q <= 1.
/// values: [n], n >= 1, finite; they are reordered.
[[nodiscard]] float quantile(std::span<float> values, double q);

/// The thresholds and ranges of a layer's keys, as encoding and decoding use them.
class KeyNormaliser {
 public:
  /// lower, upper: [channels], lower <= upper. outlier_fraction = 0: nothing is an outlier.
  KeyNormaliser(std::span<const float> lower, std::span<const float> upper, double outlier_fraction);
  /// With ranges of their own, fitted, say: x = scale * level + zero; scale, zero: [channels], finite, scale >= 0. The thresholds
  /// then only say who is an outlier.
  KeyNormaliser(std::span<const float> lower, std::span<const float> upper, double outlier_fraction,
                std::span<const float> scale, std::span<const float> zero);
  /// Of scales and zeros as they are stored, [channels], finite; nothing is an outlier, and lower() and upper() are empty.
  explicit KeyNormaliser(std::span<const Affine> affines);

  [[nodiscard]] std::size_t channels() const { return affines_.size(); }
  /// As the serving system stores it, once for a layer.
  [[nodiscard]] std::span<const Affine> affines() const { return affines_; }
  [[nodiscard]] bool keeps_outliers() const { return keeps_outliers_; }
  [[nodiscard]] std::span<const float> lower() const { return lower_; }
  [[nodiscard]] std::span<const float> upper() const { return upper_; }
  [[nodiscard]] bool is_outlier(std::size_t channel, float x) const {
    return keeps_outliers_ && (x < lower_[channel] || x > upper_[channel]);
  }

 private:
  std::vector<float> lower_, upper_;
  std::vector<Affine> affines_;
  bool keeps_outliers_;
};

/// How a value vector's own thresholds are found.
struct ValueOptions {
  double outlier_fraction = 0;  ///< p, 0 <= p < 0.5
  int groups = 1;  ///< 1: over the whole vector (scope `token`); kv_heads: per head (scope `head`)

  /// How many of a vector's numbers lie beyond their quantiles where no two are the same.
  [[nodiscard]] std::size_t outliers(std::size_t channels) const;
};

struct Outlier {
  std::uint32_t index = 0;  ///< channel
  std::uint16_t value = 0;  ///< fp16 bits
  friend bool operator==(const Outlier&, const Outlier&) = default;
};

/// A vector as it would be stored.
struct EncodedVector {
  int bits = 0;
  std::size_t channels = 0;
  /// Packed as bit_pack.h says; an outlier's place holds a code that is not used.
  std::vector<std::uint8_t> codes;
  std::vector<Affine> affines;  ///< [groups] for values; empty for keys, whose are stored once for the layer
  bool keeps_outliers = false;
  std::vector<Outlier> outliers;  ///< by ascending index

  /// What it takes: the codes, 4 bytes per affine, and where outliers are kept a count and an (index, fp16)
  /// for each; count and index take 2 bytes up to 65535 channels, 4 beyond.
  [[nodiscard]] std::size_t bytes() const;
};

/// x: [normaliser.channels()].
[[nodiscard]] EncodedVector encode_key(std::span<const float> x, const KeyNormaliser& normaliser,
                                       const Datatype& datatype);

/// x: [channels], channels >= 1 and divisible by options.groups.
/// Throws base::WrongUsage for options out of range.
[[nodiscard]] EncodedVector encode_value(std::span<const float> x, const ValueOptions& options,
                                         const Datatype& datatype);

/// [channels]. Throws base::InvalidInput where the parts of `encoded` disagree
/// or an outlier's index is out of range.
[[nodiscard]] std::vector<float> decode_key(const EncodedVector& encoded, const KeyNormaliser& normaliser,
                                            const Datatype& datatype);
[[nodiscard]] std::vector<float> decode_value(const EncodedVector& encoded, const Datatype& datatype);

}  // namespace kvcal::codec
