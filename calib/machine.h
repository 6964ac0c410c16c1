// calib/machine.h: what this machine, or the cgroup that the process lives in, has to give.
#pragma once

#include <cstdint>
#include <filesystem>

namespace kvcal::calib {

/// Memory that this process may still take, in bytes: the system's available, less where a cgroup limit
/// leaves less.
[[nodiscard]] std::int64_t available_memory_bytes();

/// All memory of the machine, in bytes.
[[nodiscard]] std::int64_t total_memory_bytes();

/// Free bytes for this user where `path`, or the nearest folder above it that exists, lies. Throws
/// SystemError.
[[nodiscard]] std::int64_t free_disk_bytes(const std::filesystem::path& path);

/// Whether this is a CPU of Intel's.
[[nodiscard]] bool cpu_is_intel();

/// Resident bytes of this process now.
[[nodiscard]] std::int64_t resident_bytes();

/// Gives memory that was freed, and that the allocator keeps for later, back to the system.
void release_freed_memory();

/// Whether this CPU has instructions that multiply bfloat16 (AVX-512 BF16 or AMX on x86-64, BF16 on Arm).
[[nodiscard]] bool multiplies_bfloat16();

}  // namespace kvcal::calib
