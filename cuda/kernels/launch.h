// cuda/kernels/launch.h: the kernels, started. On the CPU at once, lane by lane; on a GPU on a stream.
#pragma once

#include <cstddef>
#include <string>

#include "cuda/kernels/append_kernel.h"
#include "cuda/kernels/dequantise_kernel.h"
#include "cuda/kernels/flat_format.h"

namespace kvcal::codec {

/// Whether there are kernels for codes of `bits` bits and a head dimension.
[[nodiscard]] constexpr bool has_kernel(unsigned bits, unsigned dim) {
  return bits >= 2 && bits <= 4 && (dim == 64 || dim == 128 || dim == 256);
}

/// Calls body.operator()<bits, dim>(), which are known to have a kernel.
template <typename Body>
void with_kernel(unsigned bits, unsigned dim, const Body& body) {
  const auto with_dim = [&]<int kBits>() {
    if (dim == 64) return body.template operator()<kBits, 64U>();
    if (dim == 128) return body.template operator()<kBits, 128U>();
    return body.template operator()<kBits, 256U>();
  };
  if (bits == 2) return with_dim.template operator()<2>();
  if (bits == 3) return with_dim.template operator()<3>();
  return with_dim.template operator()<4>();
}

/// The most tasks of one call, task_count().
inline constexpr std::uint64_t kMostTasks = UINT32_MAX - 3;  // whole blocks of 4 have a number, too

/// reversed: each phase from lane 31 down; the result is the same.
void append_on_cpu(const AppendArguments& arguments, bool reversed = false);
void dequantise_on_cpu(const DequantiseArguments& arguments, bool reversed = false);

// What follows returns what the CUDA runtime says, "" where all is well. In a build without CUDA none but
// device_problem() is called.

/// Why the current device cannot be worked on.
[[nodiscard]] std::string device_problem();
/// Loads the kernels of a layer, as KvcalCodebook::layer() gives it, so that their first launch may be captured in a graph.
[[nodiscard]] std::string load_kernels(const KvcalFlatLayer& layer);
[[nodiscard]] std::string current_device(int& device);
/// A copy in the current device's memory; null where it fails. Waits until it is there.
[[nodiscard]] std::string copy_to_device(const void* from, std::size_t bytes, void** to);
/// Waits for what is on the default stream.
[[nodiscard]] std::string copy_from_device(const void* from, std::size_t bytes, void* to);
/// Waits for the device.
void free_on_device(void* memory);
/// Waits for the stream.
[[nodiscard]] std::string read_counters_on_device(const KvcalCounters* from, void* stream, KvcalCounters* to);
[[nodiscard]] std::string append_on_device(const AppendArguments& arguments, void* stream);
[[nodiscard]] std::string dequantise_on_device(const DequantiseArguments& arguments, void* stream);

}  // namespace kvcal::codec
