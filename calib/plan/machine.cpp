#include "calib/plan/machine.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

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

}  // namespace kvcal::calib
