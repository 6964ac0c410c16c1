#include "calib/machine.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "base/error.h"

namespace kvcal::calib {
namespace {

std::optional<std::int64_t> read_number(const char* path) {
  std::ifstream file(path);
  std::int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// What the cgroup's limit leaves; page cache that can be dropped counts as free.
std::int64_t cgroup_room() {
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  const auto limit = read_number("/sys/fs/cgroup/memory.max");
  const auto used = read_number("/sys/fs/cgroup/memory.current");
  if (!limit || !used) {
    const auto old_limit = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    const auto old_used = read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes");
    if (!old_limit || !old_used || *old_limit > (std::int64_t{1} << 60)) return kNone;
    return *old_limit - *old_used;
  }
  std::int64_t droppable = 0;
  std::ifstream statistics("/sys/fs/cgroup/memory.stat");
  std::string name;
  std::int64_t value = 0;
  while (statistics >> name >> value) {
    if (name == "inactive_file" || name == "active_file") droppable += value;
  }
  return *limit - *used + droppable;
}

}  // namespace

std::int64_t available_memory_bytes() {
  std::int64_t available = std::numeric_limits<std::int64_t>::max();
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  std::int64_t kibibytes = 0;
  while (file >> name >> kibibytes) {
    std::getline(file, unit);
    if (name == "MemAvailable:") available = kibibytes * 1024;
  }
  return std::max<std::int64_t>(0, std::min(available, cgroup_room()));
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

}  // namespace kvcal::calib
