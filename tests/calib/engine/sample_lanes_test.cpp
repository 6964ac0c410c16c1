#include "calib/engine/sample_lanes.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "base/error.h"

namespace kvcal::calib {
namespace {

/// The samples that a run called its body with, ascending.
std::vector<std::int64_t> samples_of(SampleLanes& lanes, std::int64_t samples) {
  std::mutex mutex;
  std::vector<std::int64_t> seen;
  lanes.run(samples, [&](std::int64_t sample) {
    const std::scoped_lock lock(mutex);
    seen.push_back(sample);
  });
  std::ranges::sort(seen);
  return seen;
}

std::vector<std::int64_t> first_integers(std::int64_t count) {
  std::vector<std::int64_t> integers;
  for (std::int64_t i = 0; i < count; ++i) integers.push_back(i);
  return integers;
}

TEST(SampleLanes, EverySampleIsTakenOnce) {
  for (const int lanes : {1, 2, 5}) {
    SampleLanes object(lanes, lanes);
    for (const std::int64_t samples : {0, 1, 7, 100, 7, 0})
      EXPECT_EQ(samples_of(object, samples), first_integers(samples)) << lanes << " lanes";
  }
}

TEST(SampleLanes, NoMoreSamplesAtATimeThanLanes) {
  for (const int lanes : {1, 2, 5}) {
    std::mutex mutex;
    int now = 0, most = 0;
    SampleLanes(lanes, lanes).run(60, [&](std::int64_t) {
      {
        const std::scoped_lock lock(mutex);
        most = std::max(most, ++now);
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      const std::scoped_lock lock(mutex);
      --now;
    });
    EXPECT_LE(most, lanes);
    EXPECT_GE(most, 1);
  }
}

TEST(SampleLanes, TwoLanesWorkAtTheSameTime) {
  std::mutex mutex;
  std::condition_variable arrived;
  int inside = 0, met = 0;
  SampleLanes(2, 2).run(2, [&](std::int64_t) {
    std::unique_lock lock(mutex);
    ++inside;
    arrived.notify_all();
    // Each waits for the other, and gives up only where that never comes.
    if (arrived.wait_for(lock, std::chrono::seconds(20), [&] { return inside == 2; })) ++met;
  });
  EXPECT_EQ(met, 2);
}

TEST(SampleLanes, AnExceptionIsRethrownAndEndsTheRun) {
  SampleLanes lanes(1, 1);
  std::vector<std::int64_t> begun;
  try {
    lanes.run(7, [&](std::int64_t sample) {
      begun.push_back(sample);
      if (sample >= 3) throw base::InvalidInput(base::concat("sample ", sample));
    });
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_STREQ(error.what(), "sample 3");
  }
  EXPECT_EQ(begun, first_integers(4));
}

TEST(SampleLanes, ThoseUnderWayEndBeforeTheExceptionIsRethrown) {
  SampleLanes lanes(2, 2);
  std::mutex mutex;
  std::condition_variable changed;
  bool other_began = false, other_ended = false;
  EXPECT_THROW(lanes.run(2,
                         [&](std::int64_t sample) {
                           std::unique_lock lock(mutex);
                           if (sample == 0) {
                             changed.wait_for(lock, std::chrono::seconds(20), [&] { return other_began; });
                             throw base::InvalidInput("sample 0");
                           }
                           other_began = true;
                           changed.notify_all();
                           lock.unlock();
                           std::this_thread::sleep_for(std::chrono::milliseconds(20));
                           lock.lock();
                           other_ended = true;
                         }),
               base::InvalidInput);
  EXPECT_TRUE(other_ended);
}

TEST(SampleLanes, IsOfUseAfterAnException) {
  for (const int lanes : {1, 2, 5}) {
    SampleLanes object(lanes, lanes);
    for (int repeat = 0; repeat < 3; ++repeat) {
      EXPECT_THROW(object.run(20, [](std::int64_t) { throw base::Interrupted(2); }), base::Interrupted);
      EXPECT_EQ(samples_of(object, 7), first_integers(7)) << lanes << " lanes";
    }
  }
}

TEST(SampleLanes, ThreadsAreSharedAmongLanes) {
  for (const int lanes : {1, 2, 5}) {
    for (const int threads : {1, 2, 4, 11}) {
      std::mutex mutex;
      std::vector<int> seen;
      SampleLanes(lanes, threads).run(20, [&](std::int64_t) {
        const std::scoped_lock lock(mutex);
        seen.push_back(at::get_num_threads());
      });
      EXPECT_EQ(seen, std::vector<int>(20, std::max(1, threads / lanes)))
          << lanes << " lanes, " << threads << " threads";
    }
  }
}

}  // namespace
}  // namespace kvcal::calib
