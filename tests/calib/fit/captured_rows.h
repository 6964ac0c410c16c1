// tests/calib/fit/captured_rows.h: a token of a captured float32 matrix, read and written.
#pragma once

#include <span>
#include <vector>

#include "calib/engine/layer_capture.h"

namespace kvcal::calib::testing {

inline std::vector<float> row_of(const CapturedMatrix& matrix, std::int64_t token) {
  std::vector<float> row(static_cast<std::size_t>(matrix.channels()));
  matrix.read({token, token + 1}, {0, matrix.channels()}, row);
  return row;
}

inline void set_row(CapturedMatrix& matrix, std::int64_t token, std::span<const float> row) {
  matrix.put(token, std::as_bytes(row));
}

inline void set_number(CapturedMatrix& matrix, std::int64_t token, std::int64_t channel, float number) {
  std::vector<float> row = row_of(matrix, token);
  row.at(static_cast<std::size_t>(channel)) = number;
  set_row(matrix, token, row);
}

}  // namespace kvcal::calib::testing
