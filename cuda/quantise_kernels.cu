#include <limits>

#include "cuda/cuda_check.h"
#include "cuda/quantise_kernels.h"

namespace kvcal::codec {
namespace {

// 8 codes are `bits` whole bytes, so a thread that owns 8 neighbouring channels shares no byte with another.
constexpr int kCodesPerThread = 8;
constexpr int kThreads = 256;

__device__ Affine affine_at(const DeviceVectors& layout, std::int64_t vector, int channel) {
  if (layout.groups == 0) return layout.affines[channel];
  return layout.affines[vector * layout.groups + channel / (layout.channels / layout.groups)];
}

// Grid: one thread per 8 channels, vectors * channels / 8 threads in blocks of 256; no shared memory.
// Layout: x row-major float32, codes row-major packed bytes;
// thread t owns x[8t, 8t + 8) and codes[bits * t, bits * (t + 1)).
template <int kBits>
__global__ void quantise_kernel(DeviceVectors layout, Datatype datatype, const float* __restrict__ x,
                                std::uint8_t* __restrict__ codes) {
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t first = thread * kCodesPerThread;
  if (first >= layout.vectors * layout.channels) return;
  const std::int64_t vector = first / layout.channels;
  const int channel = static_cast<int>(first % layout.channels);
  datatype.bits = kBits;
  std::uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < kCodesPerThread; ++i) {
    const Affine affine = affine_at(layout, vector, channel + i);
    const float inverse = inverse_scale(base::half_to_float(affine.scale));
    const float u = normalise(x[first + i], base::half_to_float(affine.zero), inverse);
    word |= nearest_code(u, datatype) << (i * kBits);
  }
#pragma unroll
  for (int b = 0; b < kBits; ++b) codes[thread * kBits + b] = static_cast<std::uint8_t>(word >> (8 * b));
}

// Grid and layout as quantise_kernel; no shared memory.
template <int kBits>
__global__ void dequantise_kernel(DeviceVectors layout, Datatype datatype,
                                  const std::uint8_t* __restrict__ codes, float* __restrict__ x) {
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t first = thread * kCodesPerThread;
  if (first >= layout.vectors * layout.channels) return;
  const std::int64_t vector = first / layout.channels;
  const int channel = static_cast<int>(first % layout.channels);
  std::uint32_t word = 0;
#pragma unroll
  for (int b = 0; b < kBits; ++b) word |= static_cast<std::uint32_t>(codes[thread * kBits + b]) << (8 * b);
#pragma unroll
  for (int i = 0; i < kCodesPerThread; ++i) {
    const Affine affine = affine_at(layout, vector, channel + i);
    const unsigned code = (word >> (i * kBits)) & ((1U << kBits) - 1U);
    x[first + i] =
        dequantise(code, base::half_to_float(affine.scale), base::half_to_float(affine.zero), datatype);
  }
}

// The number of blocks. Throws base::WrongUsage for what the kernels do not take.
unsigned checked_grid(const DeviceVectors& layout, const Datatype& datatype, const void* x,
                      const void* codes) {
  if (layout.vectors < 0 || layout.channels < 1 || layout.channels % kCodesPerThread != 0) {
    throw base::WrongUsage(base::concat("quantise kernels: ", layout.vectors, " vectors of ", layout.channels,
                                        " channels; the channels must be a positive multiple of ",
                                        kCodesPerThread));
  }
  if (layout.groups < 0 || (layout.groups > 0 && layout.channels % layout.groups != 0)) {
    throw base::WrongUsage(base::concat("quantise kernels: ", layout.channels,
                                        " channels cannot be cut into ", layout.groups, " groups"));
  }
  if (datatype.bits < 2 || datatype.bits > 4) {
    throw base::WrongUsage(base::concat("quantise kernels: codes have 2, 3 or 4 bits, not ", datatype.bits));
  }
  if (layout.vectors > 0 && (layout.affines == nullptr || x == nullptr || codes == nullptr)) {
    throw base::WrongUsage("quantise kernels: a null pointer for affines, vectors or codes");
  }
  const std::int64_t threads_per_vector = layout.channels / kCodesPerThread;
  constexpr std::int64_t kMostBlocks = std::numeric_limits<std::int32_t>::max();
  if (layout.vectors > kMostBlocks * kThreads / threads_per_vector) {
    throw base::WrongUsage(
        base::concat("quantise kernels: ", layout.vectors, " vectors are too many for one launch"));
  }
  return static_cast<unsigned>((layout.vectors * threads_per_vector + kThreads - 1) / kThreads);
}

}  // namespace

void launch_quantise(const DeviceVectors& layout, const Datatype& datatype, const float* x,
                     std::uint8_t* codes, cudaStream_t stream) {
  const unsigned blocks = checked_grid(layout, datatype, x, codes);
  if (blocks == 0) return;
  switch (datatype.bits) {
    case 2:
      quantise_kernel<2><<<blocks, kThreads, 0, stream>>>(layout, datatype, x, codes);
      break;
    case 3:
      quantise_kernel<3><<<blocks, kThreads, 0, stream>>>(layout, datatype, x, codes);
      break;
    default:
      quantise_kernel<4><<<blocks, kThreads, 0, stream>>>(layout, datatype, x, codes);
      break;
  }
  KVCAL_CUDA_CHECK(cudaGetLastError());
}

void launch_dequantise(const DeviceVectors& layout, const Datatype& datatype, const std::uint8_t* codes,
                       float* x, cudaStream_t stream) {
  const unsigned blocks = checked_grid(layout, datatype, x, codes);
  if (blocks == 0) return;
  switch (datatype.bits) {
    case 2:
      dequantise_kernel<2><<<blocks, kThreads, 0, stream>>>(layout, datatype, codes, x);
      break;
    case 3:
      dequantise_kernel<3><<<blocks, kThreads, 0, stream>>>(layout, datatype, codes, x);
      break;
    default:
      dequantise_kernel<4><<<blocks, kThreads, 0, stream>>>(layout, datatype, codes, x);
      break;
  }
  KVCAL_CUDA_CHECK(cudaGetLastError());
}

}  // namespace kvcal::codec
