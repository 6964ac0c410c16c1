// base/checked.h: arithmetic on sizes that come from outside: throws instead of wrapping around.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace kvcal::base {

/// a * b. Throws InvalidInput naming `what` where the product does not fit.
template <std::integral T>
[[nodiscard]] T checked_multiply(T a, T b, std::string_view what) {
  T result{};
  if (__builtin_mul_overflow(a, b, &result)) {
    throw InvalidInput(concat(what, ": the size ", a, " x ", b, " overflows"));
  }
  return result;
}

/// a + b. Throws InvalidInput naming `what` where the sum does not fit.
template <std::integral T>
[[nodiscard]] T checked_add(T a, T b, std::string_view what) {
  T result{};
  if (__builtin_add_overflow(a, b, &result)) {
    throw InvalidInput(concat(what, ": the size ", a, " + ", b, " overflows"));
  }
  return result;
}

/// value as a To. Throws InvalidInput naming `what` where it does not fit.
template <std::integral To, std::integral From>
[[nodiscard]] To checked_cast(From value, std::string_view what) {
  if (!std::in_range<To>(value)) throw InvalidInput(concat(what, ": the value ", value, " is out of range"));
  return static_cast<To>(value);
}

/// The number of elements of a shape; 1 for an empty one.
/// Throws InvalidInput for a negative extent or overflow.
[[nodiscard]] inline std::int64_t element_count(std::span<const std::int64_t> shape, std::string_view what) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) {
    if (extent < 0) throw InvalidInput(concat(what, ": negative extent ", extent));
    count = checked_multiply(count, extent, what);
  }
  return count;
}

}  // namespace kvcal::base
