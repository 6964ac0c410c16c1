// calib/engine/sample_lanes.h: samples side by side, one to a thread,
// so that threads meet at the end of a layer only.
//
// With all threads at one sample they would meet at the end of every operation, a thousand times a layer; on
// a machine with other work each meeting waits for whichever thread the system has put aside. A sample that
// one thread computes is also the same to the bit whatever the number of threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kvcal::calib {

/// Threads that wait, asleep, for samples.
class SampleLanes {
 public:
  /// Each of `lanes` threads computes with threads / lanes of libtorch's threads (at least 1).
  SampleLanes(int lanes, int threads);
  ~SampleLanes();
  SampleLanes(const SampleLanes&) = delete;
  SampleLanes& operator=(const SampleLanes&) = delete;

  /// Calls body(sample) for every sample in [0, samples), in the order in which lanes are free, and returns
  /// when all have ended. After an exception samples not yet begun are left out; that of the lowest sample is
  /// rethrown here, so that it is the same one however many lanes there are.
  void run(std::int64_t samples, const std::function<void(std::int64_t)>& body);

 private:
  void work(int threads);
  void stop();
  void take_samples(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable begin_, end_;
  const std::function<void(std::int64_t)>* body_ = nullptr;  // of the run under way
  std::int64_t next_ = 0, samples_ = 0;
  int working_ = 0;  // samples being computed
  bool stopping_ = false;
  std::exception_ptr error_;
  std::int64_t error_sample_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace kvcal::calib
