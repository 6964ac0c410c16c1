#include "base/cpu.h"

#include <fstream>
#include <string>
#include <string_view>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace kvcal::base {
namespace {

// The first line of /proc/cpuinfo that begins so; empty where there is none.
std::string cpuinfo(std::string_view name) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name)) return line;
  }
  return {};
}

}  // namespace

bool cpu_is_intel() {
  return cpuinfo("vendor_id").find("GenuineIntel") != std::string::npos;
}

bool multiplies_bfloat16() {
#if defined(__x86_64__)
  // The kernel's word: the instructions are there and it saves their registers.
  const std::string flags = cpuinfo("flags");
  return flags.find(" avx512_bf16") != std::string::npos || flags.find(" amx_bf16") != std::string::npos;
#elif defined(__aarch64__) && defined(HWCAP2_BF16)
  return (::getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

}  // namespace kvcal::base
