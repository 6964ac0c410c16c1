#include "base/cgroup.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

namespace kvcal::base {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kV2Mount =
    "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr std::string_view kV1Mounts =
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw,nosuid shared:10 - cgroup cgroup rw,cpuset\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:11 - cgroup cgroup rw,memory\n";

// Lays out /proc/self and the control groups under a folder of its own for each test, removed at its end.
class CgroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "kvcal-cgroup-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
    // A mount of another type comes first on every system.
    write("/proc/self/mountinfo", "23 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n");
  }
  void TearDown() override {
    if (!root_.empty()) fs::remove_all(root_);
  }

  void write(std::string_view path, std::string_view text, std::ios::openmode mode = std::ios::trunc) const {
    const fs::path file = root_ / fs::path(path).relative_path();
    fs::create_directories(file.parent_path());
    std::ofstream(file, std::ios::out | mode) << text;
  }
  void membership(std::string_view lines) const { write("/proc/self/cgroup", lines); }
  void mount(std::string_view lines) const { write("/proc/self/mountinfo", lines, std::ios::app); }

  void v2_memory(const std::string& group, std::string_view max, std::string_view current) const {
    write(group + "/memory.max", max);
    write(group + "/memory.current", current);
  }
  void v1_memory(const std::string& group, std::string_view limit, std::string_view usage) const {
    write(group + "/memory.limit_in_bytes", limit);
    write(group + "/memory.usage_in_bytes", usage);
  }
  void v1_cpu(const std::string& group, std::string_view quota, std::string_view period) const {
    write(group + "/cpu.cfs_quota_us", quota);
    write(group + "/cpu.cfs_period_us", period);
  }

  [[nodiscard]] std::optional<std::int64_t> room() const { return cgroup_memory_room(root_); }
  [[nodiscard]] std::optional<double> quota() const { return cgroup_cpu_quota(root_); }

  fs::path root_;
};

TEST_F(CgroupTest, NoControlGroups) {
  EXPECT_EQ(room(), std::nullopt);
  EXPECT_EQ(quota(), std::nullopt);
  // Nor with no /proc at all.
  EXPECT_EQ(cgroup_memory_room(root_ / "missing"), std::nullopt);
  EXPECT_EQ(cgroup_cpu_quota(root_ / "missing"), std::nullopt);
}

// Slurm limits the job, three groups above that of the task.
TEST_F(CgroupTest, LimitOfAMiddleGroupBinds) {
  membership("0::/system.slice/slurmstepd.scope/job_1/step_0/user/task_0\n");
  mount(kV2Mount);
  const std::string job = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_1";
  v2_memory(job, "8000\n", "3000\n");
  v2_memory(job + "/step_0/user/task_0", "max\n", "1000\n");
  write(job + "/cpu.max", "400000 100000\n");
  write(job + "/step_0/user/task_0/cpu.max", "max 100000\n");
  // A neighbour is not above the process.
  v2_memory("/sys/fs/cgroup/system.slice/slurmstepd.scope/job_2", "10\n", "1\n");
  write("/sys/fs/cgroup/system.slice/slurmstepd.scope/job_2/cpu.max", "1000 100000\n");
  EXPECT_EQ(room(), 5000);
  EXPECT_EQ(quota(), 4.0);
}

TEST_F(CgroupTest, TheTightestLevelCounts) {
  membership("0::/a/b\n");
  mount(kV2Mount);
  v2_memory("/sys/fs/cgroup/a", "10000\n", "9900\n");
  v2_memory("/sys/fs/cgroup/a/b", "500\n", "300\n");
  write("/sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  write("/sys/fs/cgroup/a/b/cpu.max", "400000 200000\n");
  EXPECT_EQ(room(), 100);  // the lower limit is b's, but a's has less left
  EXPECT_EQ(quota(), 1.5);
  v2_memory("/sys/fs/cgroup/a/b", "500\n", "450\n");
  write("/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
  EXPECT_EQ(room(), 50);
  EXPECT_EQ(quota(), 0.5);
}

TEST_F(CgroupTest, MemoryHighCountsLikeALimit) {
  membership("0::/a\n");
  mount(kV2Mount);
  v2_memory("/sys/fs/cgroup/a", "max\n", "300\n");
  write("/sys/fs/cgroup/a/memory.high", "700\n");
  EXPECT_EQ(room(), 400);
  v2_memory("/sys/fs/cgroup/a", "600\n", "300\n");
  EXPECT_EQ(room(), 300);
}

// Kubernetes with a cgroup namespace: the container's group looks like the top.
TEST_F(CgroupTest, NamespaceHasItsLimitsAtTheMountPoint) {
  membership("0::/\n");
  mount(kV2Mount);
  v2_memory("/sys/fs/cgroup", "4294967296\n", "1073741824\n");
  write("/sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(room(), std::int64_t{3} << 30);
  EXPECT_EQ(quota(), 0.5);
}

TEST_F(CgroupTest, PathIsRelativeToTheRootOfTheMount) {
  membership("0::/docker/1234/inner\n");
  mount("40 23 0:26 /docker/1234 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
  v2_memory("/sys/fs/cgroup/inner", "900\n", "100\n");
  EXPECT_EQ(room(), 800);
  v2_memory("/sys/fs/cgroup", "700\n", "100\n");
  EXPECT_EQ(room(), 600);
}

// /docker/12 is a beginning of the text /docker/1234 but not a group above it.
TEST_F(CgroupTest, HostPathThatIsNotUnderTheMountMeansTheMountPoint) {
  membership("0::/docker/1234\n");
  mount("40 23 0:26 /docker/12 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
  v2_memory("/sys/fs/cgroup", "900\n", "100\n");
  v2_memory("/sys/fs/cgroup/34", "90\n", "10\n");
  v2_memory("/sys/fs/cgroup/docker/1234", "90\n", "10\n");
  write("/sys/fs/cgroup/cpu.max", "300000 100000\n");
  EXPECT_EQ(room(), 800);
  EXPECT_EQ(quota(), 3.0);
}

TEST_F(CgroupTest, PathOutsideTheNamespaceStaysInTheMount) {
  membership("0::/../other\n");
  mount(kV2Mount);
  v2_memory("/sys/fs/cgroup", "900\n", "100\n");
  v2_memory("/sys/fs/other", "90\n", "10\n");
  EXPECT_EQ(room(), 800);
}

TEST_F(CgroupTest, OfSeveralMountsTheOneThatShowsMostLevels) {
  membership("0::/pod/box\n");
  mount("40 23 0:26 /elsewhere /first ro - cgroup2 cgroup2 rw\n");
  mount("41 23 0:26 /pod/box /second ro - cgroup2 cgroup2 rw\n");
  mount("42 23 0:26 / /third ro - cgroup2 cgroup2 rw\n");
  v2_memory("/first", "10\n", "0\n");
  v2_memory("/second", "900\n", "100\n");
  v2_memory("/third/pod/box", "900\n", "100\n");
  v2_memory("/third/pod", "700\n", "100\n");
  EXPECT_EQ(room(), 600);
}

TEST_F(CgroupTest, LaterMountHidesTheEarlierAtTheSamePoint) {
  membership("0::/pod\n");
  mount("40 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
  mount("41 40 0:26 /pod /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
  v2_memory("/sys/fs/cgroup", "900\n", "100\n");
  v2_memory("/sys/fs/cgroup/pod", "90\n", "10\n");  // a group of the pod that is called pod
  EXPECT_EQ(room(), 800);
}

TEST_F(CgroupTest, VersionOne) {
  membership("4:memory:/slurm/uid_7/job_1\n3:cpuset:/set\n1:cpu,cpuacct:/slurm/uid_7\n");
  mount(kV1Mounts);
  v1_memory("/sys/fs/cgroup/memory", "9223372036854771712\n", "123456\n");  // no limit, in pages of 4 KiB
  v1_memory("/sys/fs/cgroup/memory/slurm/uid_7", "5000\n", "2000\n");
  v1_memory("/sys/fs/cgroup/memory/slurm/uid_7/job_1", "9223372036854771712\n", "1000\n");
  v1_cpu("/sys/fs/cgroup/cpu,cpuacct", "-1\n", "100000\n");
  v1_cpu("/sys/fs/cgroup/cpu,cpuacct/slurm/uid_7", "250000\n", "100000\n");
  // Another controller's hierarchy, and its group's name in these.
  v1_cpu("/sys/fs/cgroup/cpuset/set", "1000\n", "100000\n");
  v1_cpu("/sys/fs/cgroup/cpu,cpuacct/set", "1000\n", "100000\n");
  v1_memory("/sys/fs/cgroup/memory/set", "10\n", "1\n");
  EXPECT_EQ(room(), 3000);
  EXPECT_EQ(quota(), 2.5);
}

TEST_F(CgroupTest, VersionOneWithoutLimits) {
  membership("4:memory:/\n1:cpu,cpuacct:/\n");
  mount(kV1Mounts);
  v1_memory("/sys/fs/cgroup/memory", "9223372036854771712\n", "123456\n");
  v1_cpu("/sys/fs/cgroup/cpu,cpuacct", "-1\n", "100000\n");
  EXPECT_EQ(room(), std::nullopt);
  EXPECT_EQ(quota(), std::nullopt);
}

TEST_F(CgroupTest, HybridReadsBothVersions) {
  membership("4:memory:/job\n1:name=systemd:/job\n0::/job\n");
  mount("41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  mount("42 31 0:39 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n");
  mount(kV1Mounts);
  write("/sys/fs/cgroup/unified/job/cgroup.procs", "1\n");  // a group without controllers
  v1_memory("/sys/fs/cgroup/memory/job", "5000\n", "2000\n");
  EXPECT_EQ(room(), 3000);
  EXPECT_EQ(quota(), std::nullopt);
  // The CPU controller may have moved to version 2.
  write("/sys/fs/cgroup/unified/job/cpu.max", "200000 100000\n");
  EXPECT_EQ(quota(), 2.0);
}

TEST_F(CgroupTest, PageCacheCountsAsFree) {
  membership("0::/a\n");
  mount(kV2Mount);
  v2_memory("/sys/fs/cgroup/a", "1000\n", "900\n");
  write("/sys/fs/cgroup/a/memory.stat",
        "anon 400\nfile 500\ninactive_anon 7\nactive_anon 9\ninactive_file 300\nactive_file 150\n");
  EXPECT_EQ(room(), 550);
  // Never more than the limit, though the statistics lag behind the usage.
  write("/sys/fs/cgroup/a/memory.stat",
        "inactive_file 9223372036854775807\nactive_file 9223372036854775807\n");
  EXPECT_EQ(room(), 1000);
}

// Version 1's plain names leave out the groups below, which its usage counts.
TEST_F(CgroupTest, PageCacheOfVersionOneIsTheTotal) {
  membership("4:memory:/a\n");
  mount(kV1Mounts);
  v1_memory("/sys/fs/cgroup/memory/a", "1000\n", "900\n");
  write("/sys/fs/cgroup/memory/a/memory.stat",
        "cache 1\ninactive_file 1\nactive_file 2\ntotal_inactive_file 100\ntotal_active_file 200\n");
  EXPECT_EQ(room(), 400);
}

TEST_F(CgroupTest, UsageAboveTheLimitLeavesNothing) {
  membership("0::/a\n");
  mount(kV2Mount);
  v2_memory("/sys/fs/cgroup/a", "1000\n", "1500\n");
  EXPECT_EQ(room(), 0);
  v2_memory("/sys/fs/cgroup/a", "0\n", "9223372036854775807\n");
  EXPECT_EQ(room(), 0);
}

TEST_F(CgroupTest, MaxIsNoLimit) {
  membership("0::/a\n");
  mount(kV2Mount);
  v2_memory("/sys/fs/cgroup/a", "max\n", "1500\n");
  write("/sys/fs/cgroup/a/memory.high", "max\n");
  write("/sys/fs/cgroup/a/cpu.max", "max 100000\n");
  EXPECT_EQ(room(), std::nullopt);
  EXPECT_EQ(quota(), std::nullopt);
}

TEST_F(CgroupTest, NumbersThatAreNoneLimitNothing) {
  membership("0::/a\n");
  mount(kV2Mount);
  for (const char* text : {"", "\n", "12kB\n", " 12\n", "+12\n", "-12\n", "1e3\n", "nan\n", "0x10\n",
                           "12\n12\n", "99999999999999999999\n"}) {
    v2_memory("/sys/fs/cgroup/a", text, "1\n");
    EXPECT_EQ(room(), std::nullopt) << text;
    v2_memory("/sys/fs/cgroup/a", "1000\n", text);
    EXPECT_EQ(room(), std::nullopt) << text;
  }
  for (const char* text :
       {"", "100000\n", "100000 0\n", "0 100000\n", "100000 -1\n", "nan 100000\n", "inf 100000\n",
        "1e999 100000\n", "100000 100000 100000\n", "100000  100000\n", "100000 100000\n100000 100000\n"}) {
    write("/sys/fs/cgroup/a/cpu.max", text);
    EXPECT_EQ(quota(), std::nullopt) << text;
  }
}

// A level that can't be read doesn't hide the others: a group may be removed while it is read.
TEST_F(CgroupTest, BrokenLevelLeavesTheOthers) {
  membership("0::/a/b/gone (deleted)\n");
  mount(kV2Mount);
  v2_memory("/sys/fs/cgroup/a", "1000\n", "400\n");
  write("/sys/fs/cgroup/a/memory.stat", "inactive_file\nactive_file many\n\xff\xfe\n\ninactive_file 100\n");
  write("/sys/fs/cgroup/a/cpu.max", "200000 100000\n");
  for (const char* name : {"memory.max", "memory.current", "memory.stat", "cpu.max"})
    fs::create_directories(root_ / "sys/fs/cgroup/a/b" / name);  // opens, but reading it fails
  EXPECT_EQ(room(), 700);
  EXPECT_EQ(quota(), 2.0);
}

TEST_F(CgroupTest, LinesOutOfFormatArePassedOver) {
  membership("\n0\n0:\n:::\nmemory\n0::/a\n");
  mount(
      "\n-\n1 2 3\n29 23 0:26 / /x rw - cgroup2\n29 23 0:26 / /x rw shared:1 master:2 propagate_from:3 "
      "cgroup2\n");
  mount("29 23 0:26 / /x rw shared:1 a b c -\n");
  mount(kV2Mount);
  v2_memory("/x", "10\n", "0\n");
  v2_memory("/sys/fs/cgroup/a", "1000\n", "400\n");
  EXPECT_EQ(room(), 600);
  // A membership without a mount can't be followed.
  write("/proc/self/mountinfo", "\\");
  EXPECT_EQ(room(), std::nullopt);
}

// mountinfo escapes spaces in the root and in the mount point; /proc/self/cgroup doesn't. A name may hold
// colons.
TEST_F(CgroupTest, PathsWithSpacesAndColons) {
  membership("0::/my pod/a:b\n");
  mount("29 23 0:26 /my\\040pod /mnt/control\\040groups\\134x rw - cgroup2 cgroup2 rw\n");
  v2_memory("/mnt/control groups\\x/a:b", "1000\n", "400\n");
  write("/mnt/control groups\\x/cpu.max", "100000 100000\n");
  EXPECT_EQ(room(), 600);
  EXPECT_EQ(quota(), 1.0);
}

// On whatever machine the test runs.
TEST(Cgroup, ThisProcess) {
  EXPECT_GE(cgroup_memory_room().value_or(0), 0);
  EXPECT_GT(cgroup_cpu_quota().value_or(1), 0);
}

}  // namespace
}  // namespace kvcal::base
