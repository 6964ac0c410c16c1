// tests/bench/device_timing.h: memory of a CUDA device and the time that work takes there.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace kvcal::bench {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ", " +
                           cudaGetErrorString(error));
}

/// Throws std::runtime_error with what the CUDA runtime says of a call.
#define KVCAL_CHECK_CUDA(call) ::kvcal::bench::check_cuda((call), #call)

/// Bytes on the device, of no particular contents.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) : size_(bytes) { KVCAL_CHECK_CUDA(cudaMalloc(&data_, bytes)); }
  template <typename T>
  explicit DeviceMemory(const std::vector<T>& from) : DeviceMemory(from.size() * sizeof(T)) {
    KVCAL_CHECK_CUDA(cudaMemcpy(data_, from.data(), size_, cudaMemcpyHostToDevice));
  }
  DeviceMemory(DeviceMemory&& other) noexcept
      : size_(other.size_), data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&&) = delete;
  ~DeviceMemory() { cudaFree(data_); }

  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] void* data() const { return data_; }
  template <typename T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data_);
  }
  /// Over and over, until it is full.
  void fill_with(const DeviceMemory& pattern) {
    for (std::size_t at = 0; at < size_; at += pattern.size_) {
      KVCAL_CHECK_CUDA(cudaMemcpy(as<std::uint8_t>() + at, pattern.data_, std::min(pattern.size_, size_ - at),
                                  cudaMemcpyDeviceToDevice));
    }
  }
  /// Waits for the device.
  [[nodiscard]] std::vector<std::uint8_t> bytes() const {
    std::vector<std::uint8_t> copy(size_);
    KVCAL_CHECK_CUDA(cudaDeviceSynchronize());
    KVCAL_CHECK_CUDA(cudaMemcpy(copy.data(), data_, size_, cudaMemcpyDeviceToHost));
    return copy;
  }

 private:
  std::size_t size_;
  void* data_ = nullptr;
};

/// Seconds that one of `calls` calls takes, on the device alone: enqueue(0) to enqueue(calls - 1) become a CUDA graph,
/// which is launched between two events; the median of 15 launches, after 3 to warm up.
class Timer {
 public:
  Timer() {
    KVCAL_CHECK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    KVCAL_CHECK_CUDA(cudaEventCreate(&begin_));
    KVCAL_CHECK_CUDA(cudaEventCreate(&end_));
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }

  using Enqueue = std::function<void(std::size_t call, cudaStream_t stream)>;
  [[nodiscard]] double seconds(std::size_t calls, const Enqueue& enqueue) const {
    KVCAL_CHECK_CUDA(cudaDeviceSynchronize());
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    KVCAL_CHECK_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (std::size_t call = 0; call < calls; ++call) enqueue(call, stream_);
    KVCAL_CHECK_CUDA(cudaStreamEndCapture(stream_, &graph));
    KVCAL_CHECK_CUDA(cudaGraphInstantiate(&ready, graph, 0));
    std::vector<float> milliseconds;
    for (int run = -kWarmUps; run < kRuns; ++run) {
      KVCAL_CHECK_CUDA(cudaEventRecord(begin_, stream_));
      KVCAL_CHECK_CUDA(cudaGraphLaunch(ready, stream_));
      KVCAL_CHECK_CUDA(cudaEventRecord(end_, stream_));
      KVCAL_CHECK_CUDA(cudaEventSynchronize(end_));
      float elapsed = 0;
      KVCAL_CHECK_CUDA(cudaEventElapsedTime(&elapsed, begin_, end_));
      if (run >= 0) milliseconds.push_back(elapsed);
    }
    KVCAL_CHECK_CUDA(cudaGraphExecDestroy(ready));
    KVCAL_CHECK_CUDA(cudaGraphDestroy(graph));
    const auto middle = milliseconds.begin() + kRuns / 2;
    std::nth_element(milliseconds.begin(), middle, milliseconds.end());
    return static_cast<double>(*middle) / 1000 / static_cast<double>(calls);
  }

 private:
  static constexpr int kWarmUps = 3, kRuns = 15;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace kvcal::bench
