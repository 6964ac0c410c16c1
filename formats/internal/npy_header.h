// formats/internal/npy_header.h: the header of a .npy file:
// a Python dictionary literal, of which we accept one form.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvcal::formats {

struct NpyHeader {
  std::string descr;  ///< as written: "<f4"
  bool fortran_order = false;
  std::vector<std::int64_t> shape;
};

/// Throws InvalidInput naming `what` and what was met.
[[nodiscard]] NpyHeader parse_npy_header(std::string_view text, std::string_view what);

}  // namespace kvcal::formats
