// calib/plan/machine.h: what this machine, or the cgroup that the process lives in, has to give.
#pragma once

#include <cstdint>
#include <filesystem>

namespace kvcal::calib {

/// Memory that this process may still take, in bytes:
/// the system's available, less where a cgroup limit leaves less.
[[nodiscard]] std::int64_t available_memory_bytes();

/// All memory of the machine, in bytes.
[[nodiscard]] std::int64_t total_memory_bytes();

/// Free bytes for this user where `path`, or the nearest folder above it that exists, lies.
/// Throws SystemError.
[[nodiscard]] std::int64_t free_disk_bytes(const std::filesystem::path& path);

/// Resident bytes of this process now.
[[nodiscard]] std::int64_t resident_bytes();

/// Gives memory that was freed, and that the allocator keeps for later, back to the system.
void release_freed_memory();

}  // namespace kvcal::calib
