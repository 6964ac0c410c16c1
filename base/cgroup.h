// base/cgroup.h: what the Linux control groups that this process lives in still allow: memory and CPU time.
//
// The limits may stand at any level: a batch scheduler limits the job, some groups above the process's own; a
// container sees its limits at the mount point. So every group from the process's own (/proc/self/cgroup) up
// to the mount point of its hierarchy (/proc/self/mountinfo) is asked, and the tightest answer counts.
// Versions 1 and 2 and both side by side are read; see the kernel's Documentation/admin-guide/cgroup-v2.rst
// and cgroup-v1/. Groups above the mount point can't be seen, so their limits can't be told.
//
// A file that is missing or isn't in the kernel's format limits nothing; nothing is thrown for it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace kvcal::base {

/// Bytes that this process may still take before a memory limit of one of its control groups binds; none
/// where nothing limits. Page cache that the kernel can drop counts as free. Never negative. The limits are
/// memory.max and memory.high of version 2 (above the latter the kernel throttles) and memory.limit_in_bytes
/// of version 1. `root` stands before /proc/self and before mount points: a folder with a tree laid out for a
/// test.
[[nodiscard]] std::optional<std::int64_t> cgroup_memory_room(const std::filesystem::path& root = "/");

/// CPUs' worth of time per wall second that its control groups allow, above 0 (1.5: one and a half CPUs);
/// none where nothing limits. The limits are cpu.max of version 2, cpu.cfs_quota_us / cpu.cfs_period_us of
/// version 1. `root` as above.
[[nodiscard]] std::optional<double> cgroup_cpu_quota(const std::filesystem::path& root = "/");

}  // namespace kvcal::base
