// A target as libFuzzer calls it. What refusal() lets through ends the process: libFuzzer then writes the input down.
#include <cstdint>

#include "fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  (void)kvcal::fuzz::refusal(std::as_bytes(std::span(data, size)));
  return 0;
}
