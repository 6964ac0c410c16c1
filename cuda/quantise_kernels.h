// cuda/quantise_kernels.h: codes of plain row-major vectors on the device, by the arithmetic of codec_math.h,
// packed as bit_pack.h says: the same bytes as the CPU codec. Outliers are not found here: who keeps them
// puts them over the result.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/codec_math.h"

namespace kvcal::codec {

/// What both kernels work on. All pointers are to device memory.
struct DeviceVectors {
  std::int64_t vectors = 0;         ///< >= 0
  int channels = 0;                 ///< >= 1, a multiple of 8: then a row of codes is whole bytes
  const Affine* affines = nullptr;  ///< keys: [channels]; values: [vectors * groups]
  int groups = 0;  ///< 0: affines are per channel (keys); else per vector and group of channels / groups
};

/// x: [vectors, channels] -> codes: [vectors, channels * bits / 8]. Runs on `stream`, does not wait.
/// Throws base::WrongUsage for sizes out of range, base::SystemError where the launch fails.
void launch_quantise(const DeviceVectors& layout, const Datatype& datatype, const float* x,
                     std::uint8_t* codes, cudaStream_t stream);

/// codes: [vectors, channels * bits / 8] -> x: [vectors, channels]. As above.
void launch_dequantise(const DeviceVectors& layout, const Datatype& datatype, const std::uint8_t* codes,
                       float* x, cudaStream_t stream);

}  // namespace kvcal::codec
