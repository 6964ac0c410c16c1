#include "cuda/record_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "cuda/hadamard.h"
#include "cuda/row_codec.h"

namespace kvcal::codec {
namespace {

using Bytes = std::vector<std::uint8_t>;

float rounded(float x) {
  return half_to_float(float_to_half(x));
}

// Codes of the odd 2^bits-ths from -1 to 1: 4 bits: -15/16, -13/16 .. 15/16.
Datatype even_datatype(int bits) {
  std::vector<float> centroids;
  const int count = 1 << bits;
  for (int i = 0; i < count; ++i)
    centroids.push_back((2.0F * static_cast<float>(i) + 1) / static_cast<float>(count) - 1);
  return make_datatype(centroids);
}

Datatype bent_datatype(int bits) {
  std::vector<float> centroids;
  const int count = 1 << bits;
  for (int i = 0; i < count; ++i) {
    const float x = (2.0F * static_cast<float>(i) + 1) / static_cast<float>(count) - 1;
    centroids.push_back(x * std::abs(x) * 0.3F + x * 0.7F);
  }
  return make_datatype(centroids, {1.02F, -0.003F});
}

// Thresholds -1 and 1 in every channel: scale 1, zero 0.
RecordLayer unit_layer(int bits, double key_outliers, double value_outliers, std::size_t sinks = 0) {
  const std::vector<float> lower(64, -1.0F), upper(64, 1.0F);
  return {1,
          KeyNormaliser(lower, upper, key_outliers),
          even_datatype(bits),
          even_datatype(bits),
          value_outliers,
          sinks};
}

// Numbers with heavy tails, which differ by channel.
std::vector<float> some_rows(std::size_t tokens, std::size_t channels, unsigned seed) {
  std::mt19937 generator(seed);
  std::student_t_distribution<float> heavy(5);
  std::vector<float> x(tokens * channels);
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = heavy(generator) * (1 + 0.1F * static_cast<float>(i % channels % 17));
  return x;
}

struct Shape {
  int bits;
  std::size_t kv_heads, key_dim, value_dim, page_tokens, tokens, sinks;
  double outliers;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << shape.bits << " bits, " << shape.kv_heads << " heads of " << shape.key_dim << " and "
             << shape.value_dim << ", " << shape.tokens << " tokens";
}

class RecordCodec : public testing::TestWithParam<Shape> {
 protected:
  const Shape shape_ = GetParam();
  const std::size_t key_channels_ = shape_.kv_heads * shape_.key_dim;
  const std::size_t value_channels_ = shape_.kv_heads * shape_.value_dim;
  const std::vector<float> keys_ = some_rows(shape_.tokens, key_channels_, 3);
  const std::vector<float> values_ = some_rows(shape_.tokens, value_channels_, 4);

  [[nodiscard]] RecordLayer layer() const {
    std::vector<float> lower, upper;
    for (std::size_t c = 0; c < key_channels_; ++c) {
      const float wide = 1 + 0.1F * static_cast<float>(c % 17);
      lower.push_back(-5.1F * wide);
      upper.push_back(4.7F * wide);
    }
    return {shape_.kv_heads,
            KeyNormaliser(lower, upper, shape_.outliers),
            bent_datatype(shape_.bits),
            bent_datatype(shape_.bits),
            shape_.outliers,
            shape_.sinks};
  }
  [[nodiscard]] KvcalRecordLayout layout() const {
    const auto number = [](std::size_t n) { return static_cast<std::int64_t>(n); };
    return make_record_layout(shape_.bits, number(shape_.key_dim), number(shape_.value_dim),
                              number(shape_.page_tokens), 64, 64);
  }
  [[nodiscard]] RowOptions rows() const { return {.sinks = shape_.sinks, .threads = 1}; }

  // Number by number what the codec by rows reads; an outlier to a unit in its last place. `expected` has
  // outliers.
  static void expect_reads(std::span<const float> read, const PackedRows& packed,
                           std::span<const float> expected) {
    std::vector<bool> is_outlier(read.size());
    for (std::size_t r = 0; r < packed.rows() && packed.keeps_outliers; ++r) {
      for (std::size_t o = packed.first_outlier[r]; o < packed.first_outlier[r + 1]; ++o)
        is_outlier[(packed.sinks + r) * packed.channels + packed.outliers[o].index] = true;
    }
    for (std::size_t i = 0; i < read.size(); ++i) {
      const int got = float_to_half(read[i]), wanted = float_to_half(expected[i]);
      ASSERT_EQ(read[i], rounded(read[i])) << i;
      ASSERT_LE(std::abs(got - wanted), is_outlier[i] ? 1 : 0) << i << ": " << read[i] << " " << expected[i];
    }
  }
};

TEST_P(RecordCodec, ReadsAsTheCodecByRows) {
  const RecordLayer layer = this->layer();
  const RecordPages pages = encode_records(keys_, values_, layer, layout(), 3);
  ASSERT_EQ(pages.counters.dropped_keys + pages.counters.dropped_values, 0U);
  std::vector<float> keys(keys_.size()), values(values_.size());
  decode_records(pages, layer, keys, values, 2);

  const PackedRows packed_keys = encode_keys(keys_, layer.keys, layer.key, rows());
  std::vector<float> expected(keys_.size());
  decode_keys(packed_keys, layer.keys, layer.key, expected);
  expect_reads(keys, packed_keys, expected);
  EXPECT_EQ(pages.counters.key_outliers, packed_keys.outliers.size());

  const PackedRows packed_values = encode_values(
      values_, value_channels_, {shape_.outliers, static_cast<int>(shape_.kv_heads)}, layer.value, rows());
  expected.resize(values_.size());
  decode_values(packed_values, layer.value, expected);
  expect_reads(values, packed_values, expected);
  EXPECT_EQ(pages.counters.value_outliers, packed_values.outliers.size());
  EXPECT_EQ(pages.counters.value_outliers > 0, shape_.outliers > 0 && shape_.tokens > shape_.sinks);
  EXPECT_EQ(pages.counters.saturated + pages.counters.not_finite + pages.counters.refused, 0U);
}

TEST_P(RecordCodec, AnyNumberOfThreadsGivesTheSameBytes) {
  const RecordPages one = encode_records(keys_, values_, layer(), layout(), 1);
  const RecordPages many = encode_records(keys_, values_, layer(), layout(), 5);
  EXPECT_EQ(one.records, many.records);
  EXPECT_EQ(one.key_sinks, many.key_sinks);
  EXPECT_EQ(one.value_sinks, many.value_sinks);
  EXPECT_EQ(one.counters.value_outliers, many.counters.value_outliers);
}

TEST_P(RecordCodec, TakesWholePagesAndTheSinksThereAre) {
  const RecordPages pages = encode_records(keys_, values_, layer(), layout());
  const std::size_t count = (shape_.tokens + shape_.page_tokens - 1) / shape_.page_tokens;
  EXPECT_EQ(pages.pages(), count);
  EXPECT_EQ(pages.bytes(), count * shape_.kv_heads * layout().record_bytes +
                               std::min(shape_.sinks, shape_.tokens) * 2 * (key_channels_ + value_channels_));
}

TEST_P(RecordCodec, StoresTurnedValuesAsItStoresWhatTheyBecome) {
  KvcalRecordLayout turning = layout();
  turning.value_rotation_block = 32;
  std::vector<float> turned = values_;
  turn_hadamard(turned, 32);
  const RecordPages pages = encode_records(keys_, values_, layer(), turning),
                    expected = encode_records(keys_, turned, layer(), layout());
  EXPECT_EQ(pages.records, expected.records);
  EXPECT_EQ(pages.value_sinks, expected.value_sinks);
  EXPECT_EQ(pages.key_sinks, expected.key_sinks);
  std::vector<float> keys(keys_.size()), values(values_.size()), back = values;
  decode_records(pages, layer(), keys, values);
  decode_records(expected, layer(), keys, back);
  turn_hadamard(back, 32);
  EXPECT_EQ(values, back);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, RecordCodec,
    testing::Values(Shape{4, 2, 128, 128, 64, 150, 2, 0.01}, Shape{3, 1, 64, 128, 16, 33, 0, 0.02},
                    Shape{2, 3, 256, 64, 64, 64, 5, 0.01}, Shape{3, 2, 128, 256, 64, 70, 16, 0},
                    Shape{2, 1, 64, 64, 16, 1, 0, 0.01}, Shape{3, 1, 256, 64, 16, 20, 0, 0.01},
                    Shape{4, 1, 64, 256, 16, 3, 5, 0.01}));

// 16 tokens of 64 channels. Keys: level 0 but for the places named; values: -1 (code 0) but for a 1 (the last
// code) in channel t of token t, so that scale and zero are 1 and 0; token 8 has it in channel 0, 9 in 63.
struct Golden {
  std::vector<float> keys, values = std::vector<float>(16 * 64, -1.0F);
  Datatype datatype;
  explicit Golden(int bits) : datatype(even_datatype(bits)) {
    keys.assign(16 * 64, datatype.levels[0]);
    for (std::size_t t = 0; t < 16; ++t) values[t * 64 + (t == 8 ? 0 : t == 9 ? 63 : t)] = 1;
  }
  void key(std::size_t token, std::size_t channel, unsigned code) {
    keys[token * 64 + channel] = datatype.levels[code];
  }
  [[nodiscard]] Bytes record(const KvcalRecordLayout& layout, double key_outliers = 0) const {
    return encode_records(keys, values, unit_layer(datatype.bits, key_outliers, 0), layout).records;
  }
};

// All bytes but the ones of `expected` are 0.
void expect_bytes(const Bytes& record, const std::map<std::size_t, unsigned>& expected) {
  for (std::size_t i = 0; i < record.size(); ++i) {
    const auto found = expected.find(i);
    EXPECT_EQ(record[i], found == expected.end() ? 0U : found->second) << "byte " << i;
  }
}

// What is the same for all bits: scale 1 (3c00), zero 0 of 16 tokens at `affines`.
std::map<std::size_t, unsigned> with_affines(std::map<std::size_t, unsigned> bytes, std::size_t affines) {
  for (std::size_t t = 0; t < 16; ++t) bytes[affines + 4 * t + 1] = 0x3c;
  return bytes;
}

// Values of step 0 (channels 0 to 15) have token 2 t' + e + 8 (j >> 1) and channel g + 8 (j & 1). Token and
// channel n < 8: g = n, t' = n / 2, e = n % 2, j = 0: lane 4 n + n / 2, nibble n % 2, the first byte. n + 8
// has the same lane and j = 3: nibble 6 + n % 2, the last byte. Token 8, channel 0 has j = 2: lane 0,
// nibble 4, byte 2. Token 9, channel 63: t' = 0, e = 1, g = 7, j = 3, lane 28, step 3, nibble 7: the tests
// name its bytes. A lane's first word begins at begin + stride * lane; code: the last, as a nibble of step
// 0.
void add_diagonal(std::map<std::size_t, unsigned>& bytes, std::size_t begin, std::size_t stride,
                  unsigned code) {
  for (std::size_t n = 0; n < 8; ++n) {
    const std::size_t word = begin + stride * (4 * n + n / 2);
    bytes[word] = n % 2 == 0 ? code : code << 4;
    if (n > 1) bytes[word + 3] = bytes[word];
  }
  bytes[begin + 2] = code;
}

TEST(RecordCodecOf, FourBitsHasTheseBytes) {
  Golden golden(4);
  // Lane 0 (g = 0, t = 0), step 0: nibbles 0 to 7 are tokens 0, 0, 8, 8, 0, 0, 8, 8 of channels 0, 1, 0, 1,
  // 32, 33, 32, 33. Word 0 is 0x87654321, at byte 0.
  golden.key(0, 0, 1), golden.key(0, 1, 2), golden.key(8, 0, 3), golden.key(8, 1, 4);
  golden.key(0, 32, 5), golden.key(0, 33, 6), golden.key(8, 32, 7), golden.key(8, 33, 8);
  // Token 6, channel 29 = 8 * 3 + 2 * 2 + 1: g = 6, t = 2, lane 26, step 3, j = 0, e = 1: nibble 1 of word 3,
  // which begins at 16 * 26 + 4 * 3 = 428.
  golden.key(6, 29, 9);
  // An outlier: reads as 15/16, 3 - 15/16 = 2.0625 = 0x4020, index 2 * 64 + 5 = 0x85. Channel 5 = 2 * 2 + 1:
  // lane 10, nibble 1 of word 0 at 160.
  golden.keys[2 * 64 + 5] = 3;
  const KvcalRecordLayout layout = make_record_layout(4, 64, 64, 16, 4, 4);
  EXPECT_EQ(layout.value_codes, 512U);
  EXPECT_EQ(layout.value_affines, 1024U);
  EXPECT_EQ(layout.key_outliers, 1088U);
  EXPECT_EQ(layout.value_outliers, 1104U);
  EXPECT_EQ(layout.record_bytes, 1280U);  // 1104 + 4 strips * 4 slots * 4 = 1168
  std::map<std::size_t, unsigned> expected{{0, 0x21},    {1, 0x43},   {2, 0x65},    {3, 0x87},
                                           {428, 0x90},  {160, 0xf0}, {1088, 0x85}, {1089, 0x00},
                                           {1090, 0x20}, {1091, 0x40}};
  add_diagonal(expected, 512, 16, 0xf);
  expected[512 + 16 * 28 + 4 * 3 + 3] = 0xf0;
  expect_bytes(golden.record(layout, 0.1), with_affines(expected, 1024));
}

TEST(RecordCodecOf, ThreeBitsHasTheseBytes) {
  Golden golden(3);
  // Lane 0 has three words: two at byte 8 * 0, one at 256 + 4 * 0. Step 0 as with four bits: word 0 is
  // 0x07654321.
  golden.key(0, 0, 1), golden.key(0, 1, 2), golden.key(8, 0, 3), golden.key(8, 1, 4);
  golden.key(0, 32, 5), golden.key(0, 33, 6), golden.key(8, 32, 7);
  // Step 3 (channels 24 and 25): code 6 at token 0, channel 25: nibble 1's top bit of words 1 (at 4) and 2.
  golden.key(0, 25, 6);
  // Step 2, lane 26: token 6, channel 21 = 8 * 2 + 2 * 2 + 1: nibble 1 of word 2, at 256 + 4 * 26 = 360.
  golden.key(6, 21, 6);
  const KvcalRecordLayout layout = make_record_layout(3, 64, 64, 16, 0, 0);
  EXPECT_EQ(layout.value_affines, 768U);
  EXPECT_EQ(layout.record_bytes, 896U);  // 768 + 64 = 832
  std::map<std::size_t, unsigned> expected{{0, 0x21}, {1, 0x43},   {4, 0x80},  {2, 0x65},
                                           {3, 0x07}, {256, 0x80}, {360, 0x60}};
  add_diagonal(expected, 384, 8, 7);
  for (const std::size_t word :
       std::initializer_list<std::size_t>{384 + 8 * 28, 384 + 8 * 28 + 4, 384 + 256 + 4 * 28})
    expected[word + 3] = 0x80;
  expect_bytes(golden.record(layout), with_affines(expected, 768));
}

TEST(RecordCodecOf, TwoBitsHasTheseBytes) {
  Golden golden(2);
  // Two words of a lane, at 8 l. Lane 0, steps 0 and 1: token 0, channels 0 (nibble 0, low) and 8 (nibble 0,
  // high): 1 + 4 * 2 = 9; token 8, channel 41 = 32 + 8 + 1 (nibble 7, high): 4 * 3 = 0xc.
  golden.key(0, 0, 1), golden.key(0, 8, 2), golden.key(8, 41, 3);
  // Token 6, channel 29: step 3, lane 26: word 1 at 8 * 26 + 4 = 212, nibble 1, high: 0xc0 with code 3.
  golden.key(6, 29, 3);
  const KvcalRecordLayout layout = make_record_layout(2, 64, 64, 16, 0, 0);
  EXPECT_EQ(layout.value_affines, 512U);
  EXPECT_EQ(layout.record_bytes, 640U);  // 512 + 64 = 576
  std::map<std::size_t, unsigned> expected{{0, 0x09}, {3, 0xc0}, {212, 0xc0}};
  add_diagonal(expected, 256, 8, 3);
  expected[256 + 8 * 28 + 4 + 3] = 0xc0;
  expect_bytes(golden.record(layout), with_affines(expected, 512));
}

// 32 tokens of 64 channels in a page of 64, 3 bits. Keys: level 0 but for two places of the second tile; values: -1
// (code 0) in channels 0 to 31 and 1 (code 7) in 32 to 63, so that 0.05 of outliers, whose thresholds are the places
// 1.6 and 61.4 of a row's 64 sorted numbers, leave scale 1 and zero 0 and make no number an outlier but one of 3.
TEST(RecordCodecOf, APageOf64HasTheseBytesInItsSecondTile) {
  std::vector<float> keys(32 * 64, even_datatype(3).levels[0]), values(32 * 64, -1.0F);
  for (std::size_t i = 0; i < values.size(); ++i)
    if (i % 64 >= 32) values[i] = 1;
  // A tile's codes are 16 * 64 * 3 / 8 = 384 bytes: a lane's first two words at 8 l, the third at 256 + 4 l. Token 22 is
  // row 6 of the second tile: g = 6. Channel 21 = 8 * 2 + 2 * 2 + 1: step 2, t = 2: lane 26, nibble 1 of word 2, at
  // 384 + 256 + 4 * 26 = 744.
  keys[22 * 64 + 21] = even_datatype(3).levels[6];
  // An outlier of token 18, row 2 of its tile; channel 5 = 2 * 2 + 1: step 0, lane 10, nibble 1 of word 0, at 384 + 80.
  // It reads as 7/8; 3 - 7/8 = 2.125 = 0x4040. A key's index counts rows of the tile: 2 * 64 + 5 = 0x85.
  keys[18 * 64 + 5] = 3;
  // An outlier of token 21 in channel 37 = 2 * 16 + 5, strip 2; its code stays 7, its delta is the same. A value's index
  // counts tokens of the page: 21 * 16 + 5 = 341 = 0x155.
  values[21 * 64 + 37] = 3;

  const KvcalRecordLayout layout = make_record_layout(3, 64, 64, 64, 4, 4);
  EXPECT_EQ(layout.value_codes, 1536U);     // 4 tiles of 384
  EXPECT_EQ(layout.value_affines, 3072U);   // the same again
  EXPECT_EQ(layout.key_outliers, 3328U);    // 64 * 4
  EXPECT_EQ(layout.value_outliers, 3392U);  // 4 tiles * 4 slots * 4
  EXPECT_EQ(layout.record_bytes, 3456U);    // 4 strips * 4 slots * 4: 27 * 128
  std::map<std::size_t, unsigned> expected{{744, 0x60}, {464, 0x70}};
  const auto put_slot = [&](std::size_t at, std::initializer_list<unsigned> bytes) {
    for (const unsigned byte : bytes) expected[at++] = byte;
  };
  put_slot(3328 + 1 * 4 * 4, {0x85, 0x00, 0x40, 0x40});  // of tile 1
  put_slot(3392 + 2 * 4 * 4, {0x55, 0x01, 0x40, 0x40});  // of strip 2
  // Codes 7 in steps 2 and 3 of every lane. Step 2: the low three bits of word 2's nibbles; step 3: the top bit of the
  // nibbles of words 0, 1 and 2. So words 0 and 1 are 0x88888888, and word 2 is 0xffffffff.
  for (const std::size_t tile : {1536U, 1536U + 384U})
    for (std::size_t i = 0; i < 384; ++i) expected[tile + i] = i < 256 ? 0x88 : 0xff;
  // Of the tokens that there are: scale 1.
  for (std::size_t t = 0; t < 32; ++t) expected[3072 + 4 * t + 1] = 0x3c;

  const RecordPages pages = encode_records(keys, values, unit_layer(3, 0.1, 0.05), layout);
  EXPECT_EQ(pages.counters.key_outliers, 1U);
  EXPECT_EQ(pages.counters.value_outliers, 1U);
  expect_bytes(pages.records, expected);
}

TEST(RecordCodecOf, WordsLieInGroupsOfFourThenTwo) {
  // Row 10 and channel 8 s + 2 are of lane 9 (g = 2, t = 1), register 1, its lower half: bit 0 of byte 1.
  const auto byte_of = [](const CodeTile& tile, std::size_t step) {
    Bytes bytes(tile.bytes());
    tile.put(bytes, 10, 8 * step + 2, 1);
    return std::ranges::find_if(bytes, [](std::uint8_t byte) { return byte != 0; }) - bytes.begin();
  };
  EXPECT_EQ(byte_of({4, 256}, 13), 3 * 512 + 16 * 9 + 4 + 1);  // word 13 of 16
  EXPECT_EQ(byte_of({3, 256}, 13), 2 * 512 + 16 * 9 + 8 + 1);  // step 13: G = 3, q = 1: word 10 of 12
  EXPECT_EQ(byte_of({3, 128}, 6), 512 + 8 * 9 + 4 + 1);        // G = 1, q = 2: word 5 of 6
  EXPECT_EQ(byte_of({2, 256}, 13), 512 + 16 * 9 + 8 + 1);      // word 6 of 8
}

}  // namespace
}  // namespace kvcal::codec
