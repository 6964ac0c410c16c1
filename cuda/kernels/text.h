// cuda/kernels/text.h: a sentence from its parts. (The folder builds alone: base/error.h is not for it.)
#pragma once

#include <sstream>
#include <string>

namespace kvcal::codec {

template <typename... Parts>
[[nodiscard]] std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace kvcal::codec
