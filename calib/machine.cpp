#include "calib/machine.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "base/cgroup.h"
#include "base/error.h"

namespace kvcal::calib {
namespace {

// A line of /proc/meminfo in bytes; the largest number there is where it is missing.
std::int64_t meminfo(std::string_view wanted) {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  std::int64_t kibibytes = 0;
  while (file >> name >> kibibytes) {
    std::getline(file, unit);
    if (name == wanted) return kibibytes * 1024;
  }
  return std::numeric_limits<std::int64_t>::max();
}

// The first line of /proc/cpuinfo that begins so; empty where there is none.
std::string cpuinfo(std::string_view name) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name)) return line;
  }
  return {};
}

}  // namespace

std::int64_t available_memory_bytes() {
  const std::int64_t available = meminfo("MemAvailable:");
  return std::min(available, base::cgroup_memory_room().value_or(available));
}

std::int64_t total_memory_bytes() {
  return meminfo("MemTotal:");
}

std::int64_t free_disk_bytes(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::path folder = std::filesystem::absolute(path, error);
  while (!std::filesystem::exists(folder, error) && folder.has_relative_path()) folder = folder.parent_path();
  const auto space = std::filesystem::space(folder, error);
  if (error)
    throw base::SystemError(
        base::concat("cannot ask for the free space at ", folder.string(), ": ", error.message()));
  return static_cast<std::int64_t>(
      std::min<std::uintmax_t>(space.available, std::numeric_limits<std::int64_t>::max()));
}

std::int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

void release_freed_memory() {
#if defined(__GLIBC__)
  ::malloc_trim(0);
#endif
}

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

}  // namespace kvcal::calib
