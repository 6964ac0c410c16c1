#include "cuda/kernels/record_sizes.h"

#include <algorithm>
#include <cmath>

#include "cuda/kernels/launch.h"
#include "cuda/kernels/rotation.h"
#include "cuda/kernels/text.h"

namespace kvcal::codec {
namespace {

/// A value's numbers beyond its thresholds, where all of them differ.
unsigned outliers_of(const QuantilePlace& low, const QuantilePlace& high, unsigned dim) {
  const unsigned below = low.below + (low.fraction > 0 ? 1 : 0);
  const unsigned above = dim - 1 - high.below;
  return below + above;
}

std::uint32_t slots_for(double mean, unsigned group) {
  const double slots = std::min(mean + std::sqrt(mean), double{KVCAL_MOST_SLOTS});
  const auto groups = static_cast<std::uint32_t>(std::ceil(slots / group));
  return std::min<std::uint32_t>(groups * group, KVCAL_MOST_SLOTS);
}

struct Named {
  const char* name;
  std::uint32_t number;
};

}  // namespace

std::string make_layout(std::uint32_t key_bits, std::uint32_t value_bits, std::uint32_t key_dim,
                        std::uint32_t value_dim, std::uint32_t page_tokens, std::uint32_t key_slots,
                        std::uint32_t value_slots, std::uint32_t value_rotation_block,
                        KvcalRecordLayout& layout) {
  layout = KvcalRecordLayout{};
  for (const Named& bits : {Named{"key_bits", key_bits}, Named{"value_bits", value_bits}})
    if (bits.number < 2 || bits.number > 4)
      return text(bits.name, " is ", bits.number, "; it can be 2, 3 or 4");
  for (const Named& dim : {Named{"key_dim", key_dim}, Named{"value_dim", value_dim}}) {
    if (!has_kernel(key_bits, dim.number))
      return text(dim.name, " is ", dim.number, "; it can be 64, 128 or 256");
  }
  if (page_tokens != 16 && page_tokens != 64)
    return text("page_tokens is ", page_tokens, "; it can be 16 or 64");
  for (const Named& slots : {Named{"key_slots", key_slots}, Named{"value_slots", value_slots}}) {
    if (slots.number > KVCAL_MOST_SLOTS || slots.number % 4 != 0)
      return text(slots.name, " is ", slots.number, "; it can be 0 to ", KVCAL_MOST_SLOTS, ", in fours");
  }
  if (!is_rotation_block(value_rotation_block, value_dim))
    return text("value_rotation_block is ", value_rotation_block,
                "; it can be 0, or a power of two that divides ", value_dim);
  layout.version = KVCAL_RECORD_VERSION;
  layout.key_bits = key_bits;
  layout.value_bits = value_bits;
  layout.key_dim = key_dim;
  layout.value_dim = value_dim;
  layout.page_tokens = page_tokens;
  layout.key_slots = key_slots;
  layout.value_slots = value_slots;
  layout.value_rotation_block = value_rotation_block;
  layout.value_codes = page_tokens * key_dim * key_bits / 8;
  layout.value_affines = layout.value_codes + page_tokens * value_dim * value_bits / 8;
  layout.key_outliers = layout.value_affines + page_tokens * 4;
  layout.value_outliers = layout.key_outliers + page_tokens / KVCAL_TILE_TOKENS * key_slots * 4;
  const std::uint32_t end = layout.value_outliers + value_dim / KVCAL_STRIP_CHANNELS * value_slots * 4;
  layout.record_bytes = (end + KVCAL_RECORD_ALIGNMENT - 1) / KVCAL_RECORD_ALIGNMENT * KVCAL_RECORD_ALIGNMENT;
  return {};
}

std::uint32_t default_key_slots(double fraction, std::uint32_t key_dim) {
  return fraction > 0 ? slots_for(KVCAL_TILE_TOKENS * fraction * key_dim, 8) : 0;
}

std::uint32_t default_value_slots(double fraction, std::uint32_t value_dim, std::uint32_t page_tokens) {
  if (!(fraction > 0)) return 0;
  const unsigned outliers = outliers_of(quantile_place(fraction / 2, value_dim),
                                        quantile_place(1 - fraction / 2, value_dim), value_dim);
  return slots_for(1.0 * outliers * page_tokens * KVCAL_STRIP_CHANNELS / value_dim, 4);
}

}  // namespace kvcal::codec
