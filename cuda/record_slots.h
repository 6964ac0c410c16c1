// cuda/record_slots.h: the outliers of a tile of keys or a strip of values, and the slots that they find in a
// record (record_format.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/vector_codec.h"

namespace kvcal::codec {

/// Collects the outliers of one tile or strip, then writes those that find a slot; or reads them.
class RecordSlots {
 public:
  explicit RecordSlots(std::size_t slots) : slots_(slots) {}

  [[nodiscard]] bool any() const { return slots_ > 0; }
  [[nodiscard]] std::size_t bytes() const { return slots_ * 4; }

  /// delta: fp16 bits; one of 0 is no outlier.
  void add(std::size_t index, std::uint16_t delta);

  /// to: bytes(), or more, 0 before. Adds to `met` how many were added, to `dropped` how many found no slot.
  void write(std::span<std::uint8_t> to, std::uint64_t& met, std::uint64_t& dropped);

  /// The deltas of `count` numbers, 0 where there is none. from: bytes(), or more.
  /// Throws base::InvalidInput where an index is not below count, or a delta is not finite.
  [[nodiscard]] std::vector<float> read(std::span<const std::uint8_t> from, std::size_t count) const;

 private:
  std::size_t slots_;
  std::vector<Outlier> outliers_;  // their values are the deltas
};

}  // namespace kvcal::codec
