#include "cuda/row_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "base/parallel.h"
#include "cuda/bit_pack.h"
#include "cuda/threshold_finder.h"

namespace kvcal::codec {
namespace {

// Rows that one call of the parallel loop works on, with buffers of its own.
constexpr std::size_t kRowsAtOnce = 64;

[[noreturn]] void fail(std::size_t token, std::size_t channel, const std::string& what) {
  throw base::InvalidInput(base::concat("token ", token, ", channel ", channel, ": ", what));
}

std::uint16_t checked_half(float x, std::size_t token, std::size_t channel, std::string_view what) {
  const std::uint16_t half = codec::float_to_half(x);
  if (!is_finite_half(half))
    fail(token, channel,
         base::concat("the ", what, " ", x, " overflows fp16, whose largest is ", codec::kHalfMax));
  return half;
}

void check_finite(std::span<const float> x, std::size_t token) {
  std::uint32_t bad = 0;
  for (const float value : x) {
    const std::uint32_t exponent = std::bit_cast<std::uint32_t>(value) & 0x7f800000U;
    bad |= exponent == 0x7f800000U ? 1U : 0U;
  }
  if (bad == 0) return;
  const auto at = std::ranges::find_if(x, [](float value) { return !std::isfinite(value); });
  fail(token, static_cast<std::size_t>(at - x.begin()),
       base::concat("the value to quantise is ", *at, ", which is not finite"));
}

void normalise_row(std::span<const float> x, const float* zeros, const float* inverses, float* u) {
  for (std::size_t c = 0; c < x.size(); ++c) u[c] = normalise(x[c], zeros[c], inverses[c]);
}

void normalise_row(std::span<const float> x, float zero, float inverse, float* u) {
  for (std::size_t c = 0; c < x.size(); ++c) u[c] = normalise(x[c], zero, inverse);
}

// nearest_code() of every u; the number of midpoints is known to the compiler, which then compares several
// numbers at once with each.
template <int Bits>
void code_row(std::span<const float> u, const Datatype& datatype, std::uint8_t* codes) {
  constexpr int kMidpoints = (1 << Bits) - 1;
  float midpoints[kMidpoints];
  std::copy_n(datatype.midpoints, kMidpoints, midpoints);
  for (std::size_t c = 0; c < u.size(); ++c) {
    std::int32_t code = 0;
    for (int i = 0; i < kMidpoints; ++i) code += u[c] > midpoints[i] ? 1 : 0;
    codes[c] = static_cast<std::uint8_t>(code);
  }
}

// 8 codes fill `Bits` bytes.
template <int Bits>
void pack_row(std::span<const std::uint8_t> codes, std::uint8_t* packed) {
  std::size_t c = 0;
  for (; c + 8 <= codes.size(); c += 8, packed += Bits) {
    std::uint32_t word = 0;
    for (unsigned i = 0; i < 8; ++i) word |= std::uint32_t{codes[c + i]} << (Bits * i);
    for (unsigned b = 0; b < Bits; ++b) packed[b] = static_cast<std::uint8_t>(word >> (8 * b));
  }
  std::uint32_t word = 0;
  for (unsigned i = 0; c + i < codes.size(); ++i) word |= std::uint32_t{codes[c + i]} << (Bits * i);
  const std::size_t left = ((codes.size() - c) * Bits + 7) / 8;
  for (unsigned b = 0; b < left; ++b) packed[b] = static_cast<std::uint8_t>(word >> (8 * b));
}

template <int Bits>
void unpack_row(const std::uint8_t* packed, std::span<std::uint8_t> codes) {
  constexpr std::uint32_t kMask = (1U << Bits) - 1U;
  std::size_t c = 0;
  for (; c + 8 <= codes.size(); c += 8, packed += Bits) {
    std::uint32_t word = 0;
    for (unsigned b = 0; b < Bits; ++b) word |= std::uint32_t{packed[b]} << (8 * b);
    for (unsigned i = 0; i < 8; ++i) codes[c + i] = static_cast<std::uint8_t>(word >> (Bits * i) & kMask);
  }
  std::uint32_t word = 0;
  const std::size_t left = ((codes.size() - c) * Bits + 7) / 8;
  for (unsigned b = 0; b < left; ++b) word |= std::uint32_t{packed[b]} << (8 * b);
  for (unsigned i = 0; c + i < codes.size(); ++i)
    codes[c + i] = static_cast<std::uint8_t>(word >> (Bits * i) & kMask);
}

// Calls body.operator()<Bits>() for the datatype's bits, which make_datatype() has checked.
template <typename Body>
void with_bits(int bits, const Body& body) {
  if (bits == 2) return body.template operator()<2>();
  if (bits == 3) return body.template operator()<3>();
  if (bits == 4) return body.template operator()<4>();
  throw base::WrongUsage(base::concat("codes have 2, 3 or 4 bits, not ", bits));
}

/// Codes and outliers of the rows of a matrix, block by block.
class Encoder {
 public:
  Encoder(std::span<const float> x, std::size_t channels, const Datatype& datatype, bool keeps_outliers,
          const RowOptions& options)
      : x_(x), datatype_(datatype), threads_(options.threads) {
    if (channels == 0 || x.size() % channels != 0)
      throw base::WrongUsage(
          base::concat(x.size(), " numbers are no whole tokens of ", channels, " channels"));
    if (channels > UINT32_MAX)
      throw base::InvalidInput(
          base::concat("a vector of ", channels, " channels: an outlier's index has 32 bits"));
    packed_.bits = datatype.bits;
    packed_.tokens = x.size() / channels;
    packed_.channels = channels;
    packed_.sinks = std::min(options.sinks, packed_.tokens);
    packed_.keeps_outliers = keeps_outliers;
    packed_.codes.resize(packed_.rows() * packed_.row_bytes());
    if (keeps_outliers) packed_.first_outlier.resize(packed_.rows() + 1);
    keep_sinks();
  }

  [[nodiscard]] PackedRows& packed() { return packed_; }
  [[nodiscard]] std::span<const float> row(std::size_t row) const {
    return x_.subspan((packed_.sinks + row) * packed_.channels, packed_.channels);
  }

  /// normaliser: made once for a block; normaliser(row, u, outliers) writes normalised numbers and appends the
  /// row's outliers.
  template <typename MakeNormaliser>
  PackedRows run(const MakeNormaliser& make_normaliser) {
    const std::size_t blocks = (packed_.rows() + kRowsAtOnce - 1) / kRowsAtOnce;
    std::vector<std::vector<Outlier>> outliers(blocks);
    base::parallel_for(static_cast<std::int64_t>(blocks), threads_, [&](std::int64_t block) {
      const auto index = static_cast<std::size_t>(block);
      auto normaliser = make_normaliser();
      with_bits(datatype_.bits, [&]<int Bits>() { encode_block<Bits>(index, normaliser, outliers[index]); });
    });
    if (packed_.keeps_outliers) join(outliers);
    return std::move(packed_);
  }

 private:
  void keep_sinks() {
    packed_.sink_values.resize(packed_.sinks * packed_.channels);
    for (std::size_t i = 0; i < packed_.sink_values.size(); ++i) {
      const std::size_t token = i / packed_.channels, channel = i % packed_.channels;
      if (!std::isfinite(x_[i])) check_finite(x_.subspan(token * packed_.channels, packed_.channels), token);
      packed_.sink_values[i] = checked_half(x_[i], token, channel, "sink");
    }
  }

  template <int Bits, typename Normaliser>
  void encode_block(std::size_t block, Normaliser& normaliser, std::vector<Outlier>& outliers) {
    std::vector<float> u(packed_.channels);
    std::vector<std::uint8_t> codes(packed_.channels);
    const std::size_t end = std::min(packed_.rows(), (block + 1) * kRowsAtOnce);
    for (std::size_t r = block * kRowsAtOnce; r < end; ++r) {
      check_finite(row(r), packed_.sinks + r);
      const std::size_t before = outliers.size();
      normaliser(r, u.data(), outliers);
      // For now how many; join() adds them up.
      if (packed_.keeps_outliers) packed_.first_outlier[r + 1] = outliers.size() - before;
      code_row<Bits>(u, datatype_, codes.data());
      pack_row<Bits>(codes, packed_.codes.data() + r * packed_.row_bytes());
    }
  }

  void join(const std::vector<std::vector<Outlier>>& blocks) {
    for (std::size_t r = 0; r < packed_.rows(); ++r) packed_.first_outlier[r + 1] += packed_.first_outlier[r];
    packed_.outliers.reserve(packed_.first_outlier.back());
    for (const auto& block : blocks)
      packed_.outliers.insert(packed_.outliers.end(), block.begin(), block.end());
  }

  std::span<const float> x_;
  Datatype datatype_;
  int threads_;
  PackedRows packed_;
};

/// Scales and zeros of a layer's keys as floats.
struct ChannelAffines {
  std::vector<float> scales, zeros, inverses;  // [channels]

  explicit ChannelAffines(std::span<const Affine> affines) {
    for (const Affine& affine : affines) {
      scales.push_back(codec::half_to_float(affine.scale));
      zeros.push_back(codec::half_to_float(affine.zero));
      inverses.push_back(inverse_scale(scales.back()));
    }
  }
};

void check_parts(const PackedRows& packed, const Datatype& datatype, std::span<const float> to) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw base::InvalidInput("packed rows: " + what);
  };
  // By division: the product of sizes from outside could overflow.
  const auto is_matrix = [](std::size_t size, std::size_t rows, std::size_t width) {
    return size % width == 0 && size / width == rows;
  };
  require(packed.bits == datatype.bits,
          base::concat("codes of ", packed.bits, " bits, the datatype has ", datatype.bits));
  require(packed.channels > 0 && packed.sinks <= packed.tokens,
          base::concat(packed.sinks, " sinks of ", packed.tokens, " tokens, ", packed.channels, " channels"));
  require(is_matrix(to.size(), packed.tokens, packed.channels),
          base::concat(packed.tokens, " tokens of ", packed.channels, " channels, room for ", to.size(),
                       " numbers"));
  require(is_matrix(packed.codes.size(), packed.rows(), packed.row_bytes()),
          base::concat(packed.codes.size(), " bytes of codes for ", packed.rows(), " rows of ",
                       packed.row_bytes()));
  require(is_matrix(packed.sink_values.size(), packed.sinks, packed.channels),
          base::concat(packed.sink_values.size(), " numbers of sinks"));
  if (!packed.keeps_outliers) return;
  require(packed.first_outlier.size() == packed.rows() + 1 && packed.first_outlier.front() == 0 &&
              std::ranges::is_sorted(packed.first_outlier) &&
              packed.first_outlier.back() == packed.outliers.size(),
          "rows and outliers disagree");
  for (const Outlier& outlier : packed.outliers)
    require(outlier.index < packed.channels,
            base::concat("an outlier at channel ", outlier.index, " of ", packed.channels));
}

/// dequantise(row, codes, to) for every row, then its outliers; and the sinks.
template <typename Dequantise>
void decode_rows(const PackedRows& packed, std::span<float> to, int threads, const Dequantise& dequantise) {
  for (std::size_t i = 0; i < packed.sink_values.size(); ++i)
    to[i] = codec::half_to_float(packed.sink_values[i]);
  const std::size_t blocks = (packed.rows() + kRowsAtOnce - 1) / kRowsAtOnce;
  base::parallel_for(static_cast<std::int64_t>(blocks), threads, [&](std::int64_t block) {
    std::vector<std::uint8_t> codes(packed.channels);
    const std::size_t begin = static_cast<std::size_t>(block) * kRowsAtOnce;
    for (std::size_t r = begin; r < std::min(packed.rows(), begin + kRowsAtOnce); ++r) {
      const std::span<float> x = to.subspan((packed.sinks + r) * packed.channels, packed.channels);
      with_bits(packed.bits,
                [&]<int Bits>() { unpack_row<Bits>(packed.codes.data() + r * packed.row_bytes(), codes); });
      dequantise(r, codes, x);
      if (!packed.keeps_outliers) continue;
      for (std::size_t o = packed.first_outlier[r]; o < packed.first_outlier[r + 1]; ++o)
        x[packed.outliers[o].index] = codec::half_to_float(packed.outliers[o].value);
    }
  });
}

}  // namespace

std::size_t RowsSize::row_bytes() const {
  return packed_bytes(channels, bits);
}

std::size_t RowsSize::bytes() const {
  const std::size_t index_bytes = channels <= UINT16_MAX ? 2 : 4;
  const std::size_t outlier_bytes =
      keeps_outliers ? rows * index_bytes + outliers * (index_bytes + sizeof(std::uint16_t)) : 0;
  return rows * row_bytes() + affines * sizeof(Affine) + outlier_bytes +
         sinks * channels * sizeof(std::uint16_t);
}

std::size_t PackedRows::row_bytes() const {
  return packed_bytes(channels, bits);
}

std::size_t PackedRows::bytes() const {
  return RowsSize{bits, rows(), sinks, channels, affines.size(), keeps_outliers, outliers.size()}.bytes();
}

PackedRows encode_keys(std::span<const float> x, const KeyNormaliser& normaliser, const Datatype& datatype,
                       const RowOptions& options) {
  Encoder encoder(x, normaliser.channels(), datatype, normaliser.keeps_outliers(), options);
  const ChannelAffines affines(normaliser.affines());
  const std::size_t sinks = encoder.packed().sinks;
  return encoder.run([&] {
    return [&](std::size_t r, float* u, std::vector<Outlier>& outliers) {
      const std::span<const float> row = encoder.row(r);
      normalise_row(row, affines.zeros.data(), affines.inverses.data(), u);
      if (!normaliser.keeps_outliers()) return;
      for (std::size_t c = 0; c < row.size(); ++c) {
        if (normaliser.is_outlier(c, row[c]))
          outliers.push_back({static_cast<std::uint32_t>(c), checked_half(row[c], sinks + r, c, "outlier")});
      }
    };
  });
}

PackedRows encode_values(std::span<const float> x, std::size_t channels, const ValueOptions& value,
                         const Datatype& datatype, const RowOptions& options) {
  const auto groups = static_cast<std::size_t>(std::max(0, value.groups));
  if (groups == 0 || channels == 0 || channels % groups != 0) {
    throw base::WrongUsage(
        base::concat("a value of ", channels, " channels cannot be cut into ", value.groups, " groups"));
  }
  Encoder encoder(x, channels, datatype, value.outlier_fraction > 0, options);
  PackedRows& packed = encoder.packed();
  packed.affines.resize(packed.rows() * groups);
  const std::size_t width = channels / groups;
  const ThresholdFinder thresholds(width, value.outlier_fraction);
  return encoder.run([&] {
    return [&, finder = thresholds](std::size_t r, float* u, std::vector<Outlier>& outliers) mutable {
      const std::span<const float> row = encoder.row(r);
      for (std::size_t g = 0; g < groups; ++g) {
        const std::span<const float> part = row.subspan(g * width, width);
        const auto [lower, upper] = finder.find(part);
        const Affine affine = affine_of(lower, upper);
        if (!is_finite_half(affine.scale) || !is_finite_half(affine.zero)) {
          fail(packed.sinks + r, g * width,
               base::concat("range or zero of the thresholds ", lower, " to ", upper,
                            " overflow fp16, whose largest is ", codec::kHalfMax));
        }
        packed.affines[r * groups + g] = affine;
        normalise_row(part, codec::half_to_float(affine.zero),
                      inverse_scale(codec::half_to_float(affine.scale)), u + g * width);
        if (!packed.keeps_outliers) continue;
        for (std::size_t c = 0; c < width; ++c) {
          if (part[c] >= lower && part[c] <= upper) continue;
          const std::size_t channel = g * width + c;
          outliers.push_back({static_cast<std::uint32_t>(channel),
                              checked_half(part[c], packed.sinks + r, channel, "outlier")});
        }
      }
    };
  });
}

void decode_keys(const PackedRows& packed, const KeyNormaliser& normaliser, const Datatype& datatype,
                 std::span<float> to, int threads) {
  check_parts(packed, datatype, to);
  if (packed.channels != normaliser.channels()) {
    throw base::InvalidInput(base::concat("packed rows: keys of ", packed.channels,
                                          " channels, thresholds of ", normaliser.channels()));
  }
  if (!packed.affines.empty())
    throw base::InvalidInput("packed rows: keys with scales of their own; theirs are the layer's");
  const ChannelAffines affines(normaliser.affines());
  decode_rows(packed, to, threads, [&](std::size_t, std::span<const std::uint8_t> codes, std::span<float> x) {
    for (std::size_t c = 0; c < x.size(); ++c)
      x[c] = dequantise(codes[c], affines.scales[c], affines.zeros[c], datatype);
  });
}

void decode_values(const PackedRows& packed, const Datatype& datatype, std::span<float> to, int threads) {
  check_parts(packed, datatype, to);
  const std::size_t groups = packed.rows() == 0 ? 1 : packed.affines.size() / packed.rows();
  if ((packed.rows() == 0 && !packed.affines.empty()) ||
      (packed.rows() > 0 &&
       (groups == 0 || packed.affines.size() % packed.rows() != 0 || packed.channels % groups != 0))) {
    throw base::InvalidInput(base::concat("packed rows: ", packed.affines.size(), " scales for ",
                                          packed.rows(), " values of ", packed.channels, " channels"));
  }
  const std::size_t width = packed.channels / groups;
  decode_rows(
      packed, to, threads, [&](std::size_t r, std::span<const std::uint8_t> codes, std::span<float> x) {
        for (std::size_t g = 0; g < groups; ++g) {
          const Affine& affine = packed.affines[r * groups + g];
          const float scale = codec::half_to_float(affine.scale), zero = codec::half_to_float(affine.zero);
          for (std::size_t c = g * width; c < (g + 1) * width; ++c)
            x[c] = dequantise(codes[c], scale, zero, datatype);
        }
      });
}

}  // namespace kvcal::codec
