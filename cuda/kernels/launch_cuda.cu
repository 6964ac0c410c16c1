#include <cuda_runtime_api.h>

#include <cstdint>
#include <limits>

#include "cuda/kernels/launch.h"
#include "cuda/kernels/text.h"
#include "cuda/kernels/warp_device.h"

namespace kvcal::codec {
namespace {

/// What the runtime says of an error, which it then forgets: else a later call of the engine's would tell of it.
std::string cuda_problem(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  return text(call, " failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
}

/// Ends the function with what the runtime says of a call.
#define KVCAL_CUDA_TRY(call) \
  if (std::string said = cuda_problem(#call, call); !said.empty()) return said

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

/// By the launch's own status: cudaGetLastError() would also tell of what failed before, whoever did it.
template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments, std::uint32_t), const Arguments& arguments, std::uint32_t tasks,
                   void* stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks_of(tasks));
  config.blockDim = dim3(kWarps * kLanes);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments, tasks);
}

/// Loads a kernel, and finds out whether this build has it for the device: at its first launch a graph may be captured.
template <typename Arguments>
cudaError_t load(void (*kernel)(Arguments, std::uint32_t)) {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, kernel);
}

}  // namespace

std::string device_problem() {
  int devices = 0;
  std::string problem = cuda_problem("cudaGetDeviceCount", cudaGetDeviceCount(&devices));
  if (!problem.empty()) return "no CUDA device can be used: " + problem;
  if (devices == 0) return "no CUDA device can be used: there is none";
  int device = 0, major = 0;
  KVCAL_CUDA_TRY(cudaGetDevice(&device));
  KVCAL_CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  if (major < 8)
    return text("the CUDA device has compute capability ", major, ".x; the kernels need 8.0 or later");
  problem = cuda_problem("loading a kernel", load(append_keys_kernel<4, 128>));
  return problem.empty() ? problem : "this build has no kernels for the CUDA device: " + problem;
}

std::string load_kernels(const KvcalFlatLayer& layer) {
  cudaError_t error = cudaSuccess;
  const auto try_load = [&](auto* kernel) {
    if (error == cudaSuccess) error = load(kernel);
  };
  with_kernel(layer.key_bits, layer.key_dim, [&]<int kBits, unsigned kDim>() {
    try_load(append_keys_kernel<kBits, kDim>);
    try_load(dequantise_keys_kernel<kBits, kDim>);
  });
  with_kernel(layer.value_bits, layer.value_dim, [&]<int kBits, unsigned kDim>() {
    try_load(append_values_kernel<kBits, kDim>);
    try_load(dequantise_values_kernel<kBits, kDim>);
  });
  return cuda_problem("loading the kernels", error);
}

std::string current_device(int& device) {
  KVCAL_CUDA_TRY(cudaGetDevice(&device));
  return {};
}

std::string copy_to_device(const void* from, std::size_t bytes, void** to) {
  *to = nullptr;
  KVCAL_CUDA_TRY(cudaMalloc(to, bytes));
  cudaError_t error = cudaMemcpy(*to, from, bytes, cudaMemcpyHostToDevice);
  // From pageable memory the copy may go on after cudaMemcpy has returned; streams that do not wait would overtake it.
  if (error == cudaSuccess) error = cudaStreamSynchronize(nullptr);
  if (error == cudaSuccess) return {};
  free_on_device(*to);
  *to = nullptr;
  return cuda_problem("cudaMemcpy", error);
}

std::string copy_from_device(const void* from, std::size_t bytes, void* to) {
  KVCAL_CUDA_TRY(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
  return {};
}

void free_on_device(void* memory) {
  (void)cuda_problem("cudaFree", cudaFree(memory));
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
  cudaError_t error = cudaSuccess;
  if (a.keys.data != nullptr) {
    with_kernel(a.cache.layout.key_bits, a.cache.layout.key_dim, [&]<int kBits, unsigned kDim>() {
      error = launch(append_keys_kernel<kBits, kDim>, a, tasks, stream);
    });
  }
  if (error == cudaSuccess && a.values.data != nullptr) {
    with_kernel(a.cache.layout.value_bits, a.cache.layout.value_dim, [&]<int kBits, unsigned kDim>() {
      error = launch(append_values_kernel<kBits, kDim>, a, tasks, stream);
    });
  }
  return cuda_problem("a launch of append", error);
}

std::string dequantise_on_device(const DequantiseArguments& a, void* stream) {
  const auto tasks = static_cast<std::uint32_t>(task_count(a));
  if (tasks == 0) return {};
  cudaError_t error = cudaSuccess;
  if (a.keys.data != nullptr) {
    with_kernel(a.cache.layout.key_bits, a.cache.layout.key_dim, [&]<int kBits, unsigned kDim>() {
      error = launch(dequantise_keys_kernel<kBits, kDim>, a, tasks, stream);
    });
  }
  if (error == cudaSuccess && a.values.data != nullptr) {
    with_kernel(a.cache.layout.value_bits, a.cache.layout.value_dim, [&]<int kBits, unsigned kDim>() {
      error = launch(dequantise_values_kernel<kBits, kDim>, a, tasks, stream);
    });
  }
  return cuda_problem("a launch of dequantise", error);
}

}  // namespace kvcal::codec
