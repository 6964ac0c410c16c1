// cuda/cuda_check.h: the one macro that checks every CUDA call and every launch.
//
//   KVCAL_CUDA_CHECK(cudaMemcpyAsync(...));
//   kernel<<<grid, block, 0, stream>>>(...);
//   KVCAL_CUDA_CHECK(cudaGetLastError());
//
// Throws base::SystemError with the call, its place, and the runtime's name and text for the error.
#pragma once

#include <cuda_runtime_api.h>

#include "base/error.h"

namespace kvcal::codec {

inline void throw_on_cuda_error(cudaError_t error, const char* call, const char* file, int line) {
  if (error == cudaSuccess) return;
  throw base::SystemError(base::concat("CUDA: ", call, " at ", file, ":", line, " failed: ",
                                       cudaGetErrorName(error), ", ", cudaGetErrorString(error)));
}

}  // namespace kvcal::codec

#define KVCAL_CUDA_CHECK(call) ::kvcal::codec::throw_on_cuda_error((call), #call, __FILE__, __LINE__)
