#include <cuda_runtime_api.h>

#include <cstdint>
#include <limits>

#include "cuda/kernels/launch.h"
#include "cuda/kernels/text.h"
#include "cuda/kernels/warp_device.h"

namespace kvcal::codec {
namespace {

/// Ends the function with what the runtime says of a call, or of the launch before it.
#define KVCAL_CUDA_TRY(call)                                  \
  if (const cudaError_t error = (call); error != cudaSuccess) \
  return text(#call, " failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error))

constexpr unsigned kWarps = 4;  // of a block

// Blocks at once that a multiprocessor's shared memory has room for, on sm_80.
template <unsigned kDim>
constexpr unsigned kReadingBlocks = kDim == 64    ? 12
                                    : kDim == 128 ? 8
                                                  : 4;

// Each: a grid of tasks / kWarps blocks of kWarps warps, a task a warp; shared memory: a scratch for each warp, of fixed
// size. Layouts: record_format.h. Registers, spills and instructions are held by tests/cuda/kernel_limits.json; without
// the second launch bound nvcc 13 takes fewer registers than it needs, and spills.

template <int kBits, unsigned kDim>
__global__ void __launch_bounds__(kWarps* kLanes, kDim == 256 ? 4 : 7)
    append_keys_kernel(const __grid_constant__ AppendArguments a, std::uint32_t tasks) {
  __shared__ KeyScratch<kDim> scratch[kWarps];
  const std::uint32_t task = blockIdx.x * kWarps + threadIdx.x / kLanes;
  if (task >= tasks) return;
  DeviceWarp warp;
  append_keys<DeviceWarp, kBits, kDim>(warp, a, task, scratch[threadIdx.x / kLanes]);
}

template <int kBits, unsigned kDim>
__global__ void __launch_bounds__(kWarps* kLanes, kDim == 256 ? 6 : 8)
    append_values_kernel(const __grid_constant__ AppendArguments a, std::uint32_t tasks) {
  __shared__ ValueScratch<kDim> scratch[kWarps];
  const std::uint32_t task = blockIdx.x * kWarps + threadIdx.x / kLanes;
  if (task >= tasks) return;
  DeviceWarp warp;
  append_values<DeviceWarp, kBits, kDim>(warp, a, task, scratch[threadIdx.x / kLanes]);
}

template <int kBits, unsigned kDim>
__global__ void __launch_bounds__(kWarps* kLanes, kReadingBlocks<kDim>)
    dequantise_keys_kernel(const __grid_constant__ DequantiseArguments a, std::uint32_t tasks) {
  __shared__ ReadScratch<kDim> scratch[kWarps];
  const std::uint32_t task = blockIdx.x * kWarps + threadIdx.x / kLanes;
  if (task >= tasks) return;
  DeviceWarp warp;
  dequantise_keys<DeviceWarp, kBits, kDim>(warp, a, task, scratch[threadIdx.x / kLanes]);
}

template <int kBits, unsigned kDim>
__global__ void __launch_bounds__(kWarps* kLanes, kReadingBlocks<kDim>)
    dequantise_values_kernel(const __grid_constant__ DequantiseArguments a, std::uint32_t tasks) {
  __shared__ ReadScratch<kDim> scratch[kWarps];
  const std::uint32_t task = blockIdx.x * kWarps + threadIdx.x / kLanes;
  if (task >= tasks) return;
  DeviceWarp warp;
  dequantise_values<DeviceWarp, kBits, kDim>(warp, a, task, scratch[threadIdx.x / kLanes]);
}

unsigned blocks_of(std::uint32_t tasks) {
  return tasks / kWarps + (tasks % kWarps != 0 ? 1 : 0);
}

}  // namespace

std::string device_problem() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();  // or a later call would tell of it
    return text("no CUDA device can be used: ", cudaGetErrorString(error));
  }
  if (devices == 0) return "no CUDA device can be used: there is none";
  int device = 0, major = 0;
  KVCAL_CUDA_TRY(cudaGetDevice(&device));
  KVCAL_CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  if (major < 8)
    return text("the CUDA device has compute capability ", major, ".x; the kernels need 8.0 or later");
  return {};
}

std::string copy_to_device(const void* from, std::size_t bytes, void** to) {
  *to = nullptr;
  KVCAL_CUDA_TRY(cudaMalloc(to, bytes));
  if (const cudaError_t error = cudaMemcpy(*to, from, bytes, cudaMemcpyHostToDevice); error != cudaSuccess) {
    cudaFree(*to);
    *to = nullptr;
    return text("cudaMemcpy failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  }
  return {};
}

std::string copy_from_device(const void* from, std::size_t bytes, void* to) {
  KVCAL_CUDA_TRY(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
  return {};
}

void free_on_device(void* memory) {
  cudaFree(memory);
}

std::string read_counters_on_device(const KvcalCounters* from, void* stream, KvcalCounters* to) {
  const auto on = static_cast<cudaStream_t>(stream);
  KVCAL_CUDA_TRY(cudaMemcpyAsync(to, from, sizeof(*to), cudaMemcpyDeviceToHost, on));
  KVCAL_CUDA_TRY(cudaStreamSynchronize(on));
  return {};
}

std::string append_on_device(const AppendArguments& a, void* stream) {
  const auto tasks = static_cast<std::uint32_t>(task_count(a));
  if (tasks == 0) return {};
  const auto on = static_cast<cudaStream_t>(stream);
  if (a.keys.data != nullptr)
    with_kernel(a.cache.layout.bits, a.cache.layout.key_dim, [&]<int kBits, unsigned kDim>() {
      append_keys_kernel<kBits, kDim><<<blocks_of(tasks), kWarps * kLanes, 0, on>>>(a, tasks);
    });
  KVCAL_CUDA_TRY(cudaGetLastError());
  if (a.values.data != nullptr)
    with_kernel(a.cache.layout.bits, a.cache.layout.value_dim, [&]<int kBits, unsigned kDim>() {
      append_values_kernel<kBits, kDim><<<blocks_of(tasks), kWarps * kLanes, 0, on>>>(a, tasks);
    });
  KVCAL_CUDA_TRY(cudaGetLastError());
  return {};
}

std::string dequantise_on_device(const DequantiseArguments& a, void* stream) {
  const auto tasks = static_cast<std::uint32_t>(task_count(a));
  if (tasks == 0) return {};
  const auto on = static_cast<cudaStream_t>(stream);
  if (a.keys.data != nullptr)
    with_kernel(a.cache.layout.bits, a.cache.layout.key_dim, [&]<int kBits, unsigned kDim>() {
      dequantise_keys_kernel<kBits, kDim><<<blocks_of(tasks), kWarps * kLanes, 0, on>>>(a, tasks);
    });
  KVCAL_CUDA_TRY(cudaGetLastError());
  if (a.values.data != nullptr)
    with_kernel(a.cache.layout.bits, a.cache.layout.value_dim, [&]<int kBits, unsigned kDim>() {
      dequantise_values_kernel<kBits, kDim><<<blocks_of(tasks), kWarps * kLanes, 0, on>>>(a, tasks);
    });
  KVCAL_CUDA_TRY(cudaGetLastError());
  return {};
}

}  // namespace kvcal::codec
