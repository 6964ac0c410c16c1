#include "base/parallel.h"

#include <sched.h>

#include <cmath>
#include <optional>

#include "base/cgroup.h"

namespace kvcal::base {

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cpus = 1;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cpus = CPU_COUNT(&set);
  // Read once: parallel_for() asks for every loop.
  static const std::optional<double> quota = cgroup_cpu_quota();
  if (quota && *quota < cpus) cpus = static_cast<int>(std::ceil(*quota));
  return std::max(cpus, 1);
}

}  // namespace kvcal::base
