// base/parallel.h: the one parallel loop of the project,
// and sums that do not depend on the number of threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <vector>

namespace kvcal::base {

/// The CPUs this process may use: its affinity mask, less where a cgroup quota allows less. At least 1.
[[nodiscard]] int available_cpus();

/// `threads` where it is positive, else available_cpus().
[[nodiscard]] inline int resolve_threads(int threads) {
  return threads > 0 ? threads : available_cpus();
}

/// Calls body(i) for every i in [0, count), on up to `threads` threads (0: all available), in no particular
/// order. The first exception of any call is rethrown here once all running calls have ended; calls not yet
/// begun are then skipped.
template <typename Body>
void parallel_for(std::int64_t count, int threads, const Body& body) {
  const int workers = static_cast<int>(std::min<std::int64_t>(resolve_threads(threads), count));
  if (workers <= 1) {
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::exception_ptr error;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers)
  for (std::int64_t i = 0; i < count; ++i) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      body(i);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

/// The sum over [0, count) in fixed blocks of `block` elements: partial(begin, end) gives a block's sum, and
/// the blocks are added in order. The result does not depend on `threads`. Sum needs a default value of zero
/// and operator+=.
template <typename Sum, typename Partial>
[[nodiscard]] Sum blocked_sum(std::int64_t count, std::int64_t block, int threads, const Partial& partial) {
  const std::int64_t blocks = (count + block - 1) / block;
  std::vector<Sum> partials(static_cast<std::size_t>(blocks));
  parallel_for(blocks, threads, [&](std::int64_t b) {
    partials[static_cast<std::size_t>(b)] = partial(b * block, std::min(count, (b + 1) * block));
  });
  Sum total{};
  for (const Sum& value : partials) total += value;
  return total;
}

}  // namespace kvcal::base
