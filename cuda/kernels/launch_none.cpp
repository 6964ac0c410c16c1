// What launch.h says of a device, in a build without CUDA.
#include "cuda/kernels/launch.h"

namespace kvcal::codec {
namespace {

const char* const kNone = "this build has no CUDA kernels: build with -DKVCAL_CUDA=ON, which needs nvcc";

}  // namespace

std::string device_problem() {
  return kNone;
}

std::string load_kernels(const KvcalFlatLayer& /*layer*/) {
  return kNone;
}

std::string current_device(int&) {
  return kNone;
}

std::string copy_to_device(const void*, std::size_t, void** to) {
  *to = nullptr;
  return kNone;
}

std::string copy_from_device(const void*, std::size_t, void*) {
  return kNone;
}

void free_on_device(void*) {}

std::string read_counters_on_device(const KvcalCounters*, void*, KvcalCounters*) {
  return kNone;
}

std::string append_on_device(const AppendArguments&, void*) {
  return kNone;
}

std::string dequantise_on_device(const DequantiseArguments&, void*) {
  return kNone;
}

}  // namespace kvcal::codec
