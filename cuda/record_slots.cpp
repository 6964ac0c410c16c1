#include "cuda/record_slots.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"
#include "cuda/record_layout.h"

namespace kvcal::codec {
namespace {

// Of fp16 bits: without the sign, they are in the order of the numbers.
unsigned magnitude(std::uint16_t half) {
  return half & 0x7fffU;
}

}  // namespace

void RecordSlots::add(std::size_t index, std::uint16_t delta) {
  if (magnitude(delta) != 0) outliers_.push_back({static_cast<std::uint32_t>(index), delta});
}

void RecordSlots::write(std::span<std::uint8_t> to, std::uint64_t& met, std::uint64_t& dropped) {
  std::ranges::sort(outliers_, [](const Outlier& a, const Outlier& b) {
    return std::tuple(magnitude(b.value), a.index) < std::tuple(magnitude(a.value), b.index);
  });
  const std::size_t kept = std::min(slots_, outliers_.size());
  met += outliers_.size();
  dropped += outliers_.size() - kept;
  for (std::size_t i = 0; i < kept; ++i) {
    put_u16(to, 4 * i, static_cast<std::uint16_t>(outliers_[i].index));
    put_u16(to, 4 * i + 2, outliers_[i].value);
  }
}

std::vector<float> RecordSlots::read(std::span<const std::uint8_t> from, std::size_t count) const {
  std::vector<float> deltas(count);
  for (std::size_t i = 0; i < slots_; ++i) {
    const std::uint16_t index = get_u16(from, 4 * i), delta = get_u16(from, 4 * i + 2);
    if (magnitude(delta) == 0) continue;
    if (index >= count || !is_finite_half(delta))
      throw base::InvalidInput(base::concat("paged records: slot ", i, " has an outlier at ", index, " of ",
                                            count, ", with the fp16 bits ", delta));
    deltas[index] = half_to_float(delta);
  }
  return deltas;
}

}  // namespace kvcal::codec
