// cuda/row_codec.h: the codec by rows: the keys or values of one sequence to the bytes that are stored, and back.
//
// What vector_codec.h does for one token, for a matrix of them: the same codes, scales and outliers, without an
// allocation per token, on several threads. The first tokens (sinks) are kept in fp16. The result does not
// depend on the number of threads (of several errors, any one is told).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/vector_codec.h"

namespace kvcal::codec {

/// How much there is of each part of a stored matrix.
struct RowsSize {
  int bits = 0;
  std::size_t rows = 0, sinks = 0;  ///< tokens that are coded, that are kept in fp16
  std::size_t channels = 0;
  std::size_t affines = 0;
  bool keeps_outliers = false;
  std::size_t outliers = 0;

  [[nodiscard]] std::size_t row_bytes() const;  ///< of a token's codes
  /// Codes, 4 bytes per affine, for each row that keeps outliers a count and an (index, fp16) for each of them (count
  /// and index take 2 bytes up to 65535 channels, 4 beyond), sinks. Tables of the layer are not counted.
  [[nodiscard]] std::size_t bytes() const;
};

/// A matrix [tokens, channels] as it is stored.
struct PackedRows {
  int bits = 0;
  std::size_t tokens = 0, channels = 0;
  std::size_t sinks = 0;  ///< tokens at the start that are kept in fp16
  bool keeps_outliers = false;

  std::vector<std::uint16_t> sink_values;  ///< [sinks, channels], fp16 bits
  /// [tokens - sinks, row_bytes()]: each token's codes packed as bit_pack.h says; an outlier's place holds a
  /// code that is not used.
  std::vector<std::uint8_t> codes;
  std::vector<Affine> affines;  ///< values: [tokens - sinks, groups]; keys: empty, theirs are the layer's
  std::vector<std::uint64_t> first_outlier;  ///< where outliers are kept: [tokens - sinks + 1], from 0
  std::vector<Outlier> outliers;             ///< token by token, by ascending channel

  [[nodiscard]] std::size_t rows() const { return tokens - sinks; }
  [[nodiscard]] std::size_t row_bytes() const;
  [[nodiscard]] std::size_t bytes() const;  ///< what the sequence takes, as RowsSize counts it
};

/// How a matrix is cut into tokens and who works on it.
struct RowOptions {
  std::size_t sinks = 0;  ///< at most as many as there are tokens
  int threads = 0;        ///< 0: all
};

/// x: [tokens, normaliser.channels()], finite.
/// Throws base::InvalidInput naming token and channel where x is not finite, or something that is stored as fp16
/// overflows it; base::WrongUsage where x is no whole number of tokens.
[[nodiscard]] PackedRows encode_keys(std::span<const float> x, const KeyNormaliser& normaliser,
                                     const Datatype& datatype, const RowOptions& options);

/// x: [tokens, channels], finite. Throws as encode_keys(), and base::WrongUsage where channels do not divide into
/// value.groups.
[[nodiscard]] PackedRows encode_values(std::span<const float> x, std::size_t channels,
                                       const ValueOptions& value, const Datatype& datatype,
                                       const RowOptions& options);

/// to: [tokens, channels]. Throws base::InvalidInput where the parts of `packed` disagree with each other, the
/// datatype or the normaliser, or an outlier's index is out of range.
void decode_keys(const PackedRows& packed, const KeyNormaliser& normaliser, const Datatype& datatype,
                 std::span<float> to, int threads = 0);
void decode_values(const PackedRows& packed, const Datatype& datatype, std::span<float> to, int threads = 0);

}  // namespace kvcal::codec
