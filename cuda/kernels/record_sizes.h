// cuda/kernels/record_sizes.h: how large a record is (record_format.h), and how many slots it should have.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/kernels/record_format.h"

namespace kvcal::codec {

/// A layout, complete; what is wrong with the numbers it is made from, or "".
[[nodiscard]] std::string make_layout(std::uint32_t key_bits, std::uint32_t value_bits, std::uint32_t key_dim,
                                      std::uint32_t value_dim, std::uint32_t page_tokens,
                                      std::uint32_t key_slots, std::uint32_t value_slots,
                                      std::uint32_t value_rotation_block, KvcalRecordLayout& layout);

/// Slots that hold nearly all outliers of a tile of keys, of a strip of values: the number to be expected (of
/// values by their own quantiles: at 1 % two of 64) and its square root beyond, in whole groups of 8 or 4, at most 64; 0 where there are none.
[[nodiscard]] std::uint32_t default_key_slots(double fraction, std::uint32_t key_dim);
[[nodiscard]] std::uint32_t default_value_slots(double fraction, std::uint32_t value_dim,
                                                std::uint32_t page_tokens);

}  // namespace kvcal::codec
