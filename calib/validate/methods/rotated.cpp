// Rotation and fixed tables, in the way of TurboQuant (Zandieh et al. 2025, arXiv 2504.19874), its first
// stage only: without the residual's QJL, so that inner products are a little too small, as after any
// Lloyd-Max quantiser.
//
// Each head's vector of a token is divided by its L2 norm, which is stored as fp16, and turned by a random
// rotation that is always the same. Its coordinates are then about normal with variance 1/dim whatever the
// model, and are coded by the Lloyd-Max levels of the normal distribution. Keys are taken after RoPE.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

#include "base/error.h"
#include "calib/validate/cache_method.h"
#include "cuda/bit_pack.h"
#include "cuda/hadamard.h"
#include "cuda/kernels/float16.h"
#include "cuda/vector_codec.h"

namespace kvcal::calib {

MethodFamily rotated_methods();

namespace {

struct RotatedName {
  const char* name;
  int bits;
};

constexpr std::array<RotatedName, 3> kNames{{{"turbo2", 2}, {"turbo3", 3}, {"turbo4", 4}}};

/// The positive half of the levels that give the standard normal the least squared error (Max 1960, table I).
constexpr std::array<float, 2> kLevels2{0.4528F, 1.510F};
constexpr std::array<float, 4> kLevels3{0.2451F, 0.7560F, 1.344F, 2.152F};
constexpr std::array<float, 8> kLevels4{0.1284F, 0.3881F, 0.6568F, 0.9424F, 1.256F, 1.618F, 2.069F, 2.733F};

/// Shorter transforms mix too little for coordinates to be about normal.
constexpr std::size_t kShortestTransform = 8;
constexpr std::uint64_t kSeed = 1;

codec::Datatype normal_datatype(int bits) {
  const std::span<const float> half = bits == 2   ? std::span<const float>(kLevels2)
                                      : bits == 3 ? std::span<const float>(kLevels3)
                                                  : std::span<const float>(kLevels4);
  std::vector<float> levels;
  for (std::size_t i = half.size(); i-- > 0;) levels.push_back(-half[i]);
  levels.insert(levels.end(), half.begin(), half.end());
  return codec::make_datatype(levels);
}

/// The next of SplitMix64's numbers (Steele et al. 2014).
std::uint64_t split_mix(std::uint64_t& state) {
  state += 0x9e3779b97f4a7c15U;
  std::uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

/// Signs, Hadamard, other signs, Hadamard: orthogonal, and the same for all vectors of `dim` numbers. The
/// transform works on blocks as long as the largest power of two that divides dim, each by itself.
class Rotation {
 public:
  explicit Rotation(std::size_t dim)
      : block_(codec::hadamard_block(dim)), signs_{random_signs(dim, 0), random_signs(dim, 1)} {}

  void forward(std::span<float> x) const {
    for (const std::vector<float>& signs : signs_) {
      flip(x, signs);
      codec::turn_hadamard(x, block_);
    }
  }
  void inverse(std::span<float> x) const {
    for (auto signs = signs_.rbegin(); signs != signs_.rend(); ++signs) {
      codec::turn_hadamard(x, block_);
      flip(x, *signs);
    }
  }

 private:
  static std::vector<float> random_signs(std::size_t dim, std::uint64_t stream) {
    std::uint64_t state = kSeed + stream;
    std::vector<float> signs(dim);
    for (float& sign : signs) sign = split_mix(state) >> 63 != 0 ? -1.0F : 1.0F;
    return signs;
  }

  static void flip(std::span<float> x, std::span<const float> signs) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] *= signs[i];
  }

  std::size_t block_;
  std::array<std::vector<float>, 2> signs_;  // [dim] each
};

class RotatedStorage final : public TensorStorage {
 public:
  RotatedStorage(int bits, const formats::CachedTensor& tensor)
      : point_(point_after_rope(tensor)),
        channels_(static_cast<std::size_t>(tensor.channels())),
        dim_(static_cast<std::size_t>(tensor.dim)),
        root_(std::sqrt(static_cast<float>(tensor.dim))),
        rotation_(dim_),
        datatype_(normal_datatype(bits)) {}

  [[nodiscard]] fisher::CachePoint point() const override { return point_; }

  [[nodiscard]] bool by_token() const override { return true; }

  // The codes of all vectors are one stream: 8 divides dim, so that each vector starts a byte.
  StorageUse store(std::int64_t /*first*/, std::span<const float> x, std::span<float> read) const override {
    std::vector<std::uint16_t> norms(x.size() / dim_);
    std::vector<std::uint8_t> codes(x.size());
    std::vector<float> unit(dim_);
    for (std::size_t v = 0; v < norms.size(); ++v) {
      const std::span<const float> vector = x.subspan(v * dim_, dim_);
      norms[v] = stored_norm(vector, v * dim_);
      encode(vector, codec::half_to_float(norms[v]), unit, std::span(codes).subspan(v * dim_, dim_));
    }
    const std::vector<std::uint8_t> packed = codec::pack_codes(codes, datatype_.bits);
    const std::vector<std::uint8_t> unpacked = codec::unpack_codes(packed, x.size(), datatype_.bits);
    for (std::size_t v = 0; v < norms.size(); ++v) {
      decode(std::span(unpacked).subspan(v * dim_, dim_), codec::half_to_float(norms[v]),
             read.subspan(v * dim_, dim_));
    }
    StorageUse use;
    use.values = static_cast<std::int64_t>(x.size());
    use.bytes = static_cast<std::int64_t>(packed.size() + norms.size() * sizeof(std::uint16_t));
    return use;
  }

  [[nodiscard]] std::int64_t expected_bytes(std::int64_t tokens) const override {
    const std::size_t numbers = static_cast<std::size_t>(tokens) * channels_;
    return static_cast<std::int64_t>(codec::packed_bytes(numbers, datatype_.bits) +
                                     numbers / dim_ * sizeof(std::uint16_t));
  }

 private:
  [[nodiscard]] std::uint16_t stored_norm(std::span<const float> vector, std::size_t begin) const {
    double squares = 0;
    for (const float value : vector) squares += static_cast<double>(value) * static_cast<double>(value);
    const auto norm = static_cast<float>(std::sqrt(squares));
    const std::uint16_t half = codec::float_to_half(norm);
    if (!codec::is_finite_half(half)) {
      throw base::InvalidInput(base::concat("token ", begin / channels_, ", channel ", begin % channels_,
                                            ": the norm ", norm, " of the head's vector from here on",
                                            " overflows fp16, whose largest is ", codec::kHalfMax));
    }
    return half;
  }

  // By the norm as stored, which decoding multiplies by: its rounding then costs nothing.
  void encode(std::span<const float> vector, float norm, std::span<float> unit,
              std::span<std::uint8_t> codes) const {
    // Any code reads as 0.
    if (norm == 0.0F) return;
    for (std::size_t i = 0; i < dim_; ++i) unit[i] = vector[i] / norm;
    rotation_.forward(unit);
    for (std::size_t i = 0; i < dim_; ++i)
      codes[i] = static_cast<std::uint8_t>(codec::nearest_code(unit[i] * root_, datatype_));
  }

  void decode(std::span<const std::uint8_t> codes, float norm, std::span<float> read) const {
    if (norm == 0.0F) {
      std::fill(read.begin(), read.end(), 0.0F);
      return;
    }
    for (std::size_t i = 0; i < dim_; ++i) read[i] = datatype_.levels[codes[i]] / root_;
    rotation_.inverse(read);
    for (float& value : read) value *= norm;
  }

  fisher::CachePoint point_;
  std::size_t channels_, dim_;
  float root_;  // of dim: what makes a coordinate of a unit vector about standard normal
  Rotation rotation_;
  codec::Datatype datatype_;  // for the standard normal
};

class Rotated final : public CacheMethod {
 public:
  explicit Rotated(const RotatedName& name) : name_(name) {}

  [[nodiscard]] std::unique_ptr<TensorStorage> storage(int layer,
                                                       const formats::CachedTensor& tensor) const override {
    if (codec::hadamard_block(static_cast<std::size_t>(tensor.dim)) < kShortestTransform) {
      throw base::InvalidInput(base::concat(name_.name, ", layer ", layer, ": the heads of '", tensor.name,
                                            "' have ", tensor.dim, " channels, which ", kShortestTransform,
                                            " does not divide; choose another method"));
    }
    return std::make_unique<RotatedStorage>(name_.bits, tensor);
  }

 private:
  RotatedName name_;
};

std::unique_ptr<CacheMethod> make(std::string_view name, const formats::Codebook* /*codebook*/) {
  for (const RotatedName& known : kNames)
    if (name == known.name) return std::make_unique<Rotated>(known);
  return nullptr;
}

std::vector<std::string> served(const formats::Codebook* /*codebook*/) {
  return {kNames[0].name, kNames[1].name, kNames[2].name};
}

std::vector<std::string> by_default(const formats::Codebook* /*codebook*/) {
  return {};
}

}  // namespace

MethodFamily rotated_methods() {
  return {{"turbo2, turbo3, turbo4",
           "rotation and the normal distribution's levels, after TurboQuant without QJL; keys after RoPE"},
          make,
          served,
          by_default};
}

}  // namespace kvcal::calib
