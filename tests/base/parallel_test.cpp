#include "base/parallel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace kvcal::base {
namespace {

TEST(ParallelFor, CallsEachIndexOnce) {
  for (const int threads : {0, 1, 3, 8}) {
    std::vector<std::atomic<int>> calls(1000);
    parallel_for(1000, threads, [&](std::int64_t i) { ++calls[static_cast<std::size_t>(i)]; });
    for (const auto& count : calls) EXPECT_EQ(count.load(), 1);
  }
}

TEST(ParallelFor, NothingToDo) {
  parallel_for(0, 4, [](std::int64_t) { FAIL(); });
}

TEST(ParallelFor, RethrowsAndSkipsTheRest) {
  for (const int threads : {1, 4}) {
    std::atomic<int> calls{0};
    const auto body = [&](std::int64_t i) {
      ++calls;
      if (i == 5) throw std::out_of_range("five");
    };
    EXPECT_THROW(parallel_for(1000000, threads, body), std::out_of_range);
    EXPECT_LT(calls.load(), 1000000);
  }
}

TEST(ParallelFor, RethrowsWhenEveryCallThrows) {
  EXPECT_THROW(parallel_for(64, 4, [](std::int64_t) { throw std::runtime_error("each"); }),
               std::runtime_error);
}

TEST(BlockedSum, TheSameForAnyNumberOfThreads) {
  // Terms of very different size: a sum in another order has other last bits.
  const auto partial = [](std::int64_t begin, std::int64_t end) {
    double sum = 0;
    for (std::int64_t i = begin; i < end; ++i)
      sum += std::sin(static_cast<double>(i)) * std::exp2(static_cast<double>(i % 60));
    return sum;
  };
  const double expected = blocked_sum<double>(100003, 64, 1, partial);
  for (const int threads : {0, 2, 3, 7})
    EXPECT_EQ(blocked_sum<double>(100003, 64, threads, partial), expected);
}

TEST(BlockedSum, CoversEveryElementOnce) {
  const auto count = [](std::int64_t begin, std::int64_t end) { return end - begin; };
  for (const std::int64_t size : {0, 1, 63, 64, 65, 1000}) {
    EXPECT_EQ(blocked_sum<std::int64_t>(size, 64, 3, count), size);
  }
}

TEST(AvailableCpus, AtLeastOne) {
  EXPECT_GE(available_cpus(), 1);
  EXPECT_EQ(resolve_threads(5), 5);
  EXPECT_EQ(resolve_threads(0), available_cpus());
}

}  // namespace
}  // namespace kvcal::base
