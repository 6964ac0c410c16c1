// The warp of cuda/kernels/warp.h as a CPU runs it, its matrix operations against PTX's text, and that the
// codes of a record are the A operand of an mma as they lie.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "cuda/kernels/float16.h"
#include "cuda/kernels/record_math.h"
#include "cuda/kernels/warp_lockstep.h"
#include "cuda/kernels/warp_matrix.h"

namespace kvcal::codec {
namespace {

template <typename T>
using PerLane = LockstepWarp::PerLane<T>;
using Random = std::mt19937;

constexpr unsigned kHeads = 8;
constexpr unsigned kDims[] = {64, 128, 256};

unsigned below(unsigned n, Random& random) {
  return std::uniform_int_distribution<unsigned>(0, n - 1)(random);
}

std::uint32_t any_word(Random& random) {
  return static_cast<std::uint32_t>(random());
}

/// -2 to 2 in steps of 1/32: exact in fp16. Products are multiples of 1/1024 up to 4, so that sums of 1024 of
/// them are exact in float in any order.
float random_number(Random& random) {
  return (static_cast<float>(below(129, random)) - 64.0F) / 32.0F;
}

std::uint32_t pair_of(float low, float high) {
  return float_to_half(low) | static_cast<std::uint32_t>(float_to_half(high)) << 16;
}

/// Half i of a lane's registers, as PTX counts a fragment's elements.
void set_half(std::uint32_t* registers, unsigned i, float x) {
  registers[i / 2] |= static_cast<std::uint32_t>(float_to_half(x)) << (i % 2 * 16);
}

// LockstepWarp

TEST(LockstepWarp, RunsEachLaneOnceInEitherOrder) {
  for (const bool reversed : {false, true}) {
    std::vector<unsigned> seen;
    LockstepWarp(reversed).each([&](unsigned lane) { seen.push_back(lane); });
    ASSERT_EQ(seen.size(), 32U);
    for (unsigned i = 0; i < 32; ++i) EXPECT_EQ(seen[i], reversed ? 31 - i : i);
  }
}

TEST(LockstepWarp, LanesMeetTheSameInEitherOrder) {
  for (const bool reversed : {false, true}) {
    const LockstepWarp warp(reversed);
    PerLane<bool> flags;
    PerLane<std::uint32_t> x;
    PerLane<float> y;
    warp.each([&](unsigned lane) {
      flags[lane] = lane == 0 || lane == 5 || lane == 31;
      x[lane] = 0xf0000000U + (lane * 7 + 3) % 32;  // 3 + 10 + ... : each of 0 to 31 once
      y[lane] = static_cast<float>(lane) - 0.5F;
    });
    EXPECT_EQ(warp.ballot(flags), 0x80000021U);
    EXPECT_EQ(warp.reduce_min(x), 0xf0000000U);
    EXPECT_EQ(warp.reduce_add(x), 496U);  // 32 * 0xf0000000 is 0 modulo 2^32
    for (unsigned lane = 0; lane < 32; ++lane)
      EXPECT_EQ(warp.broadcast(y, lane), static_cast<float>(lane) - 0.5F);
    std::uint64_t counter = 0xffffffffU;
    warp.count(&counter, 3);
    warp.count(&counter, 0);
    EXPECT_EQ(counter, 0x100000002U);
  }
}

// Shuffles: PTX ISA "shfl.sync".

TEST(Shuffles, KeepALanesOwnBeyondTheEdges) {
  const LockstepWarp warp;
  PerLane<std::uint32_t> x;
  PerLane<float> y;
  for (unsigned lane = 0; lane < 32; ++lane) {
    x[lane] = 100 + lane;
    y[lane] = static_cast<float>(lane);
  }
  for (unsigned by = 0; by < 32; ++by) {
    const PerLane<std::uint32_t> up = shuffle_up(warp, x, by), down = shuffle_down(warp, x, by);
    const PerLane<float> crossed = shuffle_xor(warp, y, by);
    for (unsigned lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(up[lane], lane >= by ? 100 + lane - by : 100 + lane);
      EXPECT_EQ(down[lane], lane + by <= 31 ? 100 + lane + by : 100 + lane);
      EXPECT_EQ(crossed[lane], static_cast<float>(lane ^ by));
    }
  }
  EXPECT_EQ(shuffle_up(warp, x, 33)[31], 130U);  // the low five bits count
  EXPECT_EQ(shuffle_down(warp, x, 33)[0], 101U);
  EXPECT_EQ(shuffle_xor(warp, x, 34)[0], 102U);
}

TEST(Shuffles, TakeFromAnyLane) {
  const LockstepWarp warp;
  Random random(1);
  PerLane<std::int32_t> x;
  PerLane<unsigned> source;
  for (unsigned lane = 0; lane < 32; ++lane) {
    x[lane] = -static_cast<std::int32_t>(lane);
    source[lane] = below(64, random);
  }
  const PerLane<std::int32_t> moved = shuffle(warp, x, source);
  for (unsigned lane = 0; lane < 32; ++lane)
    EXPECT_EQ(moved[lane], -static_cast<std::int32_t>(source[lane] & 31U));
}

// prmt

TEST(PermuteBytes, PicksBytesOrTheirSigns) {
  Random random(2);
  for (int trial = 0; trial < 20000; ++trial) {
    const std::uint32_t a = any_word(random), b = any_word(random), selector = any_word(random);
    std::array<std::uint8_t, 8> bytes{};
    std::memcpy(bytes.data(), &a, 4);
    std::memcpy(bytes.data() + 4, &b, 4);
    std::array<std::uint8_t, 4> expected{};
    std::uint32_t rest = selector;
    for (std::uint8_t& byte : expected) {
      byte = bytes[rest % 8];
      if (rest / 8 % 2 == 1) byte = byte >= 128 ? 255 : 0;
      rest /= 16;
    }
    const std::uint32_t permuted = permute_bytes(a, b, selector);
    EXPECT_EQ(std::memcmp(&permuted, expected.data(), 4), 0) << std::hex << a << ' ' << b << ' ' << selector;
  }
  EXPECT_EQ(permute_bytes(0x33221100U, 0x77665544U, 0x7604U), 0x77660044U);
  EXPECT_EQ(permute_bytes(0x0000ff7fU, 0x80000000U, 0xf98fU), 0xffff00ffU);
}

// ldmatrix, movmatrix

template <int N, bool Transposed>
void expect_loaded() {
  // 64 rows that are all different in all places; matrix i's row r is row 37 (8 i + r) + 11 modulo 64.
  alignas(16) std::array<std::uint16_t, 64 * 8> shared{};
  for (unsigned i = 0; i < shared.size(); ++i) shared[i] = static_cast<std::uint16_t>(1000 + i);
  PerLane<const std::uint16_t*> rows;  // of the lanes that do not count: none
  for (unsigned lane = 0; lane < 8 * N; ++lane) rows[lane] = shared.data() + (37 * lane + 11) % 64 * 8;
  const PerLane<Registers<N>> x = load_matrices<N, Transposed>(LockstepWarp(), rows);
  for (unsigned matrix = 0; matrix < N; ++matrix) {
    for (unsigned row = 0; row < 8; ++row) {
      for (unsigned column = 0; column < 8; ++column) {
        // PTX: lanes 4 r to 4 r + 3 receive row r, each two numbers; with .trans, of the transpose.
        const unsigned r = Transposed ? column : row, c = Transposed ? row : column;
        const std::uint32_t word = x[4 * r + c / 2].r[matrix];
        EXPECT_EQ(c % 2 == 0 ? word & 0xffffU : word >> 16,
                  1000 + (37 * (8 * matrix + row) + 11) % 64 * 8 + column)
            << N << ' ' << Transposed << ' ' << matrix << ' ' << row << ' ' << column;
      }
    }
  }
}

TEST(LoadMatrices, HandsOutRowsOrColumns) {
  expect_loaded<1, false>();
  expect_loaded<2, false>();
  expect_loaded<4, false>();
  expect_loaded<1, true>();
  expect_loaded<2, true>();
  expect_loaded<4, true>();
}

TEST(LoadMatrices, RefusesWhatAGpuWouldFaultOn) {
  alignas(16) std::array<std::uint16_t, 16> shared{};
  PerLane<const std::uint16_t*> rows;
  for (unsigned lane = 0; lane < 8; ++lane) rows[lane] = shared.data();
  EXPECT_NO_THROW((load_matrices<1, false>(LockstepWarp(), rows)));
  EXPECT_THROW((load_matrices<2, false>(LockstepWarp(), rows)), std::logic_error);
  rows[7] = shared.data() + 1;
  EXPECT_THROW((load_matrices<1, false>(LockstepWarp(), rows)), std::logic_error);
}

TEST(Transpose8x8, SwapsRowsAndColumns) {
  PerLane<std::uint32_t> x;
  for (std::uint32_t lane = 0; lane < 32; ++lane)
    x[lane] = 2 * lane | (2 * lane + 1) << 16;  // [r][c] = 8 r + c
  const PerLane<std::uint32_t> transposed = transpose_8x8(LockstepWarp(), x);
  for (unsigned row = 0; row < 8; ++row) {
    for (unsigned column = 0; column < 8; ++column) {
      const std::uint32_t word = transposed[row * 4 + column / 2];
      EXPECT_EQ(column % 2 == 0 ? word & 0xffffU : word >> 16, 8 * column + row);
    }
  }
}

// mma: PTX's formulas for element i of a fragment, word by word as its text has them.

struct Place {
  unsigned row, column;
};

Place place_of_a(unsigned lane, unsigned i, unsigned k) {
  const unsigned group_id = lane >> 2, thread_in_group = lane % 4;
  if (k == 8) return {i < 2 ? group_id : group_id + 8, thread_in_group * 2 + (i & 0x1U)};
  return {i < 2 || (4 <= i && i < 6) ? group_id : group_id + 8,
          i < 4 ? thread_in_group * 2 + (i & 0x1U) : thread_in_group * 2 + (i & 0x1U) + 8};
}
Place place_of_b(unsigned lane, unsigned i, unsigned k) {
  const unsigned group_id = lane >> 2, thread_in_group = lane % 4;
  if (k == 8) return {thread_in_group * 2 + i, group_id};
  return {i < 2 ? thread_in_group * 2 + (i & 0x1U) : thread_in_group * 2 + (i & 0x1U) + 8, group_id};
}
Place place_of_c(unsigned lane, unsigned i) {
  const unsigned group_id = lane >> 2, thread_in_group = lane % 4;
  return {i < 2 ? group_id : group_id + 8, thread_in_group * 2 + (i & 0x1U)};
}

template <unsigned K>
void expect_product(Random& random) {
  float a[16][K], b[K][8], c[16][8];
  for (auto& row : a)
    for (float& x : row) x = random_number(random);
  for (auto& row : b)
    for (float& x : row) x = random_number(random);
  for (auto& row : c)
    for (float& x : row) x = random_number(random);
  PerLane<Registers<K / 4>> left;
  PerLane<Registers<K / 8>> right;
  PerLane<Accumulators> sums;
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < K / 2; ++i) {
      const Place at = place_of_a(lane, i, K);
      set_half(left[lane].r, i, a[at.row][at.column]);
    }
    for (unsigned i = 0; i < K / 4; ++i) {
      const Place at = place_of_b(lane, i, K);
      set_half(right[lane].r, i, b[at.row][at.column]);
    }
    for (unsigned i = 0; i < 4; ++i) sums[lane].f[i] = c[place_of_c(lane, i).row][place_of_c(lane, i).column];
  }
  const LockstepWarp warp;
  PerLane<Accumulators> d;
  if constexpr (K == 16) {
    mma_m16n8k16(warp, d, left, right, sums);
    mma_m16n8k16(warp, sums, left, right, sums);  // onto its own input
  } else {
    mma_m16n8k8(warp, d, left, right, sums);
    mma_m16n8k8(warp, sums, left, right, sums);
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      const Place at = place_of_c(lane, i);
      float expected = c[at.row][at.column];
      for (unsigned k = 0; k < K; ++k) expected += a[at.row][k] * b[k][at.column];
      EXPECT_EQ(d[lane].f[i], expected) << K << ' ' << at.row << ' ' << at.column;
      EXPECT_EQ(sums[lane].f[i], expected);
    }
  }
}

TEST(Mma, IsTheProductOfMatrices) {
  Random random(3);
  for (int trial = 0; trial < 20; ++trial) {
    expect_product<16>(random);
    expect_product<8>(random);
  }
}

// Record

TEST(RecordPlaces, AreDistinctAndInvert) {
  for (const unsigned dim : kDims) {
    std::set<std::tuple<unsigned, unsigned, unsigned>> keys, values;
    for (unsigned row = 0; row < kTileTokens; ++row) {
      for (unsigned channel = 0; channel < dim; ++channel) {
        const CodePlace key = key_place(row, channel, dim), value = value_place(row, channel);
        for (const CodePlace& place : {key, value})
          EXPECT_TRUE(place.lane < kLanes && place.step < dim / 16 && place.nibble < 8)
              << row << ' ' << channel;
        keys.insert({key.lane, key.step, key.nibble});
        values.insert({value.lane, value.step, value.nibble});
        EXPECT_EQ(key_row(key.lane, key.nibble), row);
        EXPECT_EQ(key_channel(key.lane, key.step, key.nibble, dim), channel);
        EXPECT_EQ(value_row(value.lane, value.nibble), row);
        EXPECT_EQ(value_channel(value.lane, value.step, value.nibble), channel);
      }
    }
    EXPECT_EQ(keys.size(), std::size_t{kTileTokens} * dim);
    EXPECT_EQ(values.size(), std::size_t{kTileTokens} * dim);
  }
}

TEST(RecordPlaces, PairsOfRopeShareALaneTwoRegistersApart) {
  for (const unsigned dim : kDims) {
    for (unsigned row = 0; row < kTileTokens; ++row) {
      for (unsigned channel = 0; channel < dim / 2; ++channel) {
        const CodePlace first = key_place(row, channel, dim), second = key_place(row, channel + dim / 2, dim);
        EXPECT_EQ(first.lane, second.lane);
        EXPECT_EQ(first.step, second.step);
        EXPECT_EQ(first.nibble + 4, second.nibble);
      }
    }
  }
}

TEST(RecordWords, FillTheTileByFoursThenTwoThenOne) {
  for (const unsigned words : {2U, 3U, 4U, 6U, 8U, 12U, 16U}) {
    std::set<unsigned> offsets;
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      for (unsigned word = 0; word < words; ++word) {
        const unsigned offset = word_offset(words, word, lane);
        EXPECT_EQ(offset % 4, 0U);
        EXPECT_LT(offset, 128 * words);
        offsets.insert(offset);
      }
      // What a lane loads at once, 16 or 8 bytes, follows each other on an address that its size divides.
      for (unsigned word = 0; word + 1 < words; ++word) {
        const bool in_four = word / 4 < words / 4, in_two = !in_four && words % 4 >= 2 && word % 4 == 0;
        const unsigned offset = word_offset(words, word, lane);
        if ((in_four && word % 4 < 3) || in_two) {
          EXPECT_EQ(word_offset(words, word + 1, lane), offset + 4);
        }
        if (word % 4 == 0) {
          EXPECT_EQ(offset % (in_four ? 16 : in_two ? 8 : 4), 0U);
        }
      }
    }
    EXPECT_EQ(offsets.size(), std::size_t{kLanes} * words);
  }
  EXPECT_EQ(words_per_lane(128, 4), 8U);
  EXPECT_EQ(words_per_lane(128, 3), 6U);
  EXPECT_EQ(words_per_lane(128, 2), 4U);
  EXPECT_EQ(word_offset(6, 5, 3), 512U + 8 * 3 + 4);
  EXPECT_EQ(word_offset(3, 2, 3), 256U + 4 * 3);
  EXPECT_EQ(word_offset(8, 6, 3), 512U + 16 * 3 + 8);
}

enum class Side { kKeys, kValues };

/// A tile of random codes, its bytes, and what the codes read as.
template <int Bits>
struct Tile {
  Tile(Side side, unsigned dim, Random& random) : dim_(dim), numbers(std::size_t{kTileTokens} * dim) {
    for (float& level : levels) level = random_number(random);
    std::vector<std::uint32_t> spread(std::size_t{kLanes} * (dim / 16));  // [lane][step]
    for (unsigned row = 0; row < kTileTokens; ++row) {
      for (unsigned channel = 0; channel < dim; ++channel) {
        const unsigned code = below(1U << Bits, random);
        const CodePlace at = side == Side::kKeys ? key_place(row, channel, dim) : value_place(row, channel);
        spread[at.lane * (dim / 16) + at.step] |= code << (4 * at.nibble);
        numbers[row * dim + channel] = levels[code];
      }
    }
    const unsigned words = words_per_lane(dim, Bits);
    bytes.resize(std::size_t{kTileTokens} * dim * Bits / 8);
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      std::vector<std::uint32_t> own(words);
      for (unsigned step = 0; step < dim / 16; ++step)
        put_step<Bits>(spread[lane * (dim / 16) + step], step, own.data());
      for (unsigned word = 0; word < words; ++word)
        std::memcpy(bytes.data() + word_offset(words, word, lane), &own[word], 4);
    }
  }

  /// The step's operand: nibble 2 j + e through the levels is half e of register j.
  [[nodiscard]] PerLane<Registers<4>> operand(unsigned step) const {
    const unsigned words = words_per_lane(dim_, Bits);
    PerLane<Registers<4>> a;
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      std::vector<std::uint32_t> own(words);
      for (unsigned word = 0; word < words; ++word)
        std::memcpy(&own[word], bytes.data() + word_offset(words, word, lane), 4);
      const std::uint32_t nibbles = get_step<Bits>(step, own.data());
      for (unsigned j = 0; j < 4; ++j)
        a[lane].r[j] = pair_of(levels[nibbles >> (8 * j) & 15U], levels[nibbles >> (8 * j + 4) & 15U]);
    }
    return a;
  }

  unsigned dim_;
  std::vector<float> numbers;  ///< [token][channel]
  std::array<float, 1U << Bits> levels{};
  std::vector<std::uint8_t> bytes;
};

/// Scores of 8 heads: the columns of step s are channels 8 s to 8 s + 7 and those dim / 2 beyond; so are the
/// rows of q that the other operand is loaded from.
template <int Bits>
void expect_keys_feed(unsigned dim, Random& random) {
  const LockstepWarp warp;
  const Tile<Bits> tile(Side::kKeys, dim, random);
  struct alignas(16) Row {
    std::uint16_t heads[kHeads];
  };
  std::vector<Row> query(dim);
  for (Row& row : query)
    for (std::uint16_t& q : row.heads) q = float_to_half(random_number(random));
  PerLane<Accumulators> scores;
  for (unsigned step = 0; step < dim / 16; ++step) {
    PerLane<const std::uint16_t*> rows;
    for (unsigned k = 0; k < 16; ++k)
      rows[k] = query[k < 8 ? 8 * step + k : 8 * step + (k - 8) + dim / 2].heads;
    mma_m16n8k16(warp, scores, tile.operand(step), load_matrices<2, true>(warp, rows), scores);
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      const Place at = place_of_c(lane, i);
      float expected = 0;
      for (unsigned channel = 0; channel < dim; ++channel)
        expected += tile.numbers[at.row * dim + channel] * half_to_float(query[channel].heads[at.column]);
      EXPECT_EQ(scores[lane].f[i], expected) << "token " << at.row << ", head " << at.column;
    }
  }
}

/// Outputs of 8 heads: P [token][head] lies as an mma leaves scores, and two transpositions make it the other
/// operand.
template <int Bits>
void expect_values_feed(unsigned dim, Random& random) {
  const LockstepWarp warp;
  const Tile<Bits> tile(Side::kValues, dim, random);
  float shares[kTileTokens][kHeads];
  for (auto& row : shares)
    for (float& share : row) share = random_number(random);
  PerLane<std::uint32_t> early, late;  // tokens 0 to 7, 8 to 15
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const auto share = [&](unsigned i) {
      return shares[place_of_c(lane, i).row][place_of_c(lane, i).column];
    };
    early[lane] = pair_of(share(0), share(1));
    late[lane] = pair_of(share(2), share(3));
  }
  early = transpose_8x8(warp, early);
  late = transpose_8x8(warp, late);
  PerLane<Registers<2>> b;
  for (unsigned lane = 0; lane < kLanes; ++lane) b[lane] = {{early[lane], late[lane]}};
  for (unsigned step = 0; step < dim / 16; ++step) {
    PerLane<Accumulators> out;
    mma_m16n8k16(warp, out, tile.operand(step), b, out);
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      for (unsigned i = 0; i < 4; ++i) {
        const Place at = place_of_c(lane, i);
        const unsigned channel = 16 * step + at.row;
        float expected = 0;
        for (unsigned token = 0; token < kTileTokens; ++token)
          expected += shares[token][at.column] * tile.numbers[token * dim + channel];
        EXPECT_EQ(out[lane].f[i], expected) << "channel " << channel << ", head " << at.column;
      }
    }
  }
}

TEST(RecordOperand, KeysFeedTheMma) {
  Random random(4);
  for (const unsigned dim : kDims) {
    SCOPED_TRACE(dim);
    expect_keys_feed<2>(dim, random);
    expect_keys_feed<3>(dim, random);
    expect_keys_feed<4>(dim, random);
  }
}

TEST(RecordOperand, ValuesFeedTheMma) {
  Random random(5);
  for (const unsigned dim : kDims) {
    SCOPED_TRACE(dim);
    expect_values_feed<2>(dim, random);
    expect_values_feed<3>(dim, random);
    expect_values_feed<4>(dim, random);
  }
}

}  // namespace
}  // namespace kvcal::codec
