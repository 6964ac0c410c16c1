// tests/cuda/test_memory.h: where the kernels' tests run, and memory there. On the CPU; with the environment variable
// KVCAL_TEST_DEVICE=cuda on the current CUDA device: a test that asked for a device and finds none fails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/kernels/kvcal_cuda.h"

namespace kvcal::codec {

/// Throws std::runtime_error where the variable is neither empty, "cpu" nor "cuda".
[[nodiscard]] KvcalDevice test_device();

/// Bytes that are filled on the host and handed to the C API where test_device() works. Aligned as records are.
class TestMemory {
 public:
  /// All 0.
  explicit TestMemory(std::size_t bytes);
  template <typename T>
  explicit TestMemory(const std::vector<T>& from) : TestMemory(from.data(), from.size() * sizeof(T)) {}
  TestMemory(const void* from, std::size_t bytes);

  [[nodiscard]] std::size_t size() const { return size_; }
  /// To be filled, before the first place().
  [[nodiscard]] std::uint8_t* host() { return reinterpret_cast<std::uint8_t*>(blocks_.get()); }
  /// For the C API; null where there are no bytes. From the first call on, on a device, what counts is what lies there.
  /// Throws std::runtime_error with what the CUDA runtime says, as copy_to() does.
  [[nodiscard]] void* place();
  template <typename T>
  [[nodiscard]] T* as() {
    return static_cast<T*>(place());
  }
  /// Waits for the device.
  void copy_to(void* to, std::size_t from, std::size_t bytes) const;

 private:
  struct alignas(KVCAL_RECORD_ALIGNMENT) Block {
    std::uint8_t bytes[KVCAL_RECORD_ALIGNMENT];
  };
  struct FreeOnDevice {
    void operator()(std::uint8_t* memory) const;
  };
  std::size_t size_;
  std::unique_ptr<Block[]> blocks_;
  std::unique_ptr<std::uint8_t, FreeOnDevice> device_;
};

}  // namespace kvcal::codec
