// calib/plan/tensor_memory.h: where libtorch gets the memory of its tensors while a run lasts.
//
// A pass makes the same tensors for every sample. The C library's allocator gives large ones back to the
// system each time, to be mapped and zeroed again (a tenth of the time), and what it keeps depends on chance.
// Here a freed block waits for the next tensor of about its size: the second sample finds all that the first
// one made, and what a run holds follows from the sizes alone, so that it can be said before.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace kvcal::calib {

/// Makes libtorch take its CPU memory from here for as long as this object lives; one at a time.
/// Tensors may outlive it.
class TensorMemory {
 public:
  TensorMemory();
  ~TensorMemory();
  TensorMemory(const TensorMemory&) = delete;
  TensorMemory& operator=(const TensorMemory&) = delete;

  /// Gives the blocks that wait back to the system.
  static void release();

  /// Blocks that wait are given back before tensors and they would together take more than `bytes`: samples
  /// of many lengths leave many sizes. Without it there is no limit; it ends with this object.
  static void set_limit(std::int64_t bytes);

  /// Bytes of large tensors and of the blocks that wait.
  [[nodiscard]] static std::int64_t held();

  /// The bytes that all tensors made and freed while `work` runs would hold here, one sample being alone: for
  /// each size as many blocks as were in use at once. Counts the tensors of all threads.
  [[nodiscard]] static std::int64_t count(const std::function<void()>& work);

 private:
  void* previous_;  // the allocator that libtorch had
};

}  // namespace kvcal::calib
