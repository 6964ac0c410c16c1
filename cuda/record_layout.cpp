#include "cuda/record_layout.h"

#include "base/checked.h"
#include "cuda/kernels/record_math.h"
#include "cuda/kernels/record_sizes.h"

namespace kvcal::codec {

KvcalRecordLayout make_record_layout(std::int64_t bits, std::int64_t key_dim, std::int64_t value_dim,
                                     std::int64_t page_tokens, std::int64_t key_slots,
                                     std::int64_t value_slots) {
  return make_record_layout(bits, bits, key_dim, value_dim, page_tokens, key_slots, value_slots);
}

KvcalRecordLayout make_record_layout(std::int64_t key_bits, std::int64_t value_bits, std::int64_t key_dim,
                                     std::int64_t value_dim, std::int64_t page_tokens, std::int64_t key_slots,
                                     std::int64_t value_slots, std::int64_t value_rotation_block) {
  const auto number = [](std::int64_t value, std::string_view what) {
    return base::checked_cast<std::uint32_t>(value, what);
  };
  KvcalRecordLayout layout;
  const std::string problem = make_layout(
      number(key_bits, "key_bits"), number(value_bits, "value_bits"), number(key_dim, "key_dim"),
      number(value_dim, "value_dim"), number(page_tokens, "page_tokens"), number(key_slots, "key_slots"),
      number(value_slots, "value_slots"), number(value_rotation_block, "value_rotation_block"), layout);
  if (!problem.empty()) throw base::InvalidInput("a record's layout: " + problem);
  return layout;
}

std::size_t CodeTile::bit(std::size_t row, std::size_t channel, std::size_t b) const {
  const auto r = static_cast<unsigned>(row), c = static_cast<unsigned>(channel);
  const CodePlace place = keys ? key_place(r, c, static_cast<unsigned>(dim)) : value_place(r, c);
  const std::size_t s = place.step, first = 4 * place.nibble;
  std::size_t word = s, bit = first + b;
  if (bits == 3) {
    const bool spread = s % 4 == 3;
    word = 3 * (s / 4) + (spread ? b : s % 4);
    bit = first + (spread ? 3 : b);
  } else if (bits == 2) {
    word = s / 2;
    bit = first + 2 * (s % 2) + b;
  }
  const auto words = static_cast<unsigned>(dim * bits / 64);
  return 8 * std::size_t{word_offset(words, static_cast<unsigned>(word), place.lane)} + bit;
}

void CodeTile::put(std::span<std::uint8_t> tile, std::size_t row, std::size_t channel, unsigned code) const {
  for (std::size_t b = 0; b < bits; ++b) {
    const std::size_t at = bit(row, channel, b);
    tile[at / 8] = static_cast<std::uint8_t>(tile[at / 8] | (code >> b & 1U) << (at % 8));
  }
}

unsigned CodeTile::get(std::span<const std::uint8_t> tile, std::size_t row, std::size_t channel) const {
  unsigned code = 0;
  for (std::size_t b = 0; b < bits; ++b) {
    const std::size_t at = bit(row, channel, b);
    code |= (tile[at / 8] >> (at % 8) & 1U) << b;
  }
  return code;
}

}  // namespace kvcal::codec
