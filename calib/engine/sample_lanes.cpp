#include "calib/engine/sample_lanes.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace kvcal::calib {

SampleLanes::SampleLanes(int lanes, int threads) {
  const int threads_each = std::max(1, threads / lanes);
  // What other threads, and those that libtorch makes itself, begin with.
  at::set_num_threads(threads_each);
  try {
    for (int lane = 0; lane < lanes; ++lane)
      threads_.emplace_back([this, threads_each] { work(threads_each); });
  } catch (...) {
    stop();
    throw;
  }
}

SampleLanes::~SampleLanes() {
  stop();
}

void SampleLanes::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  begin_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void SampleLanes::run(std::int64_t samples, const std::function<void(std::int64_t)>& body) {
  std::unique_lock lock(mutex_);
  body_ = &body;
  next_ = 0;
  samples_ = samples;
  error_ = nullptr;
  begin_.notify_all();
  end_.wait(lock, [this] { return next_ >= samples_ && working_ == 0; });
  body_ = nullptr;
  if (error_) std::rethrow_exception(error_);
}

void SampleLanes::work(int threads) {
  std::unique_lock lock(mutex_);
  at::set_num_threads(threads);
  for (;;) {
    begin_.wait(lock, [this] { return stopping_ || next_ < samples_; });
    if (stopping_) return;
    take_samples(lock);
  }
}

void SampleLanes::take_samples(std::unique_lock<std::mutex>& lock) {
  while (next_ < samples_) {
    const std::int64_t sample = next_++;
    ++working_;
    lock.unlock();
    std::exception_ptr error;
    try {
      (*body_)(sample);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    --working_;
    if (error) {
      if (!error_ || sample < error_sample_) error_ = error, error_sample_ = sample;
      next_ = samples_;
    }
  }
  if (working_ == 0) end_.notify_one();
}

}  // namespace kvcal::calib
