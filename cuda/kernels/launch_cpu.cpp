#include <omp.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/kernels/launch.h"
#include "cuda/kernels/warp_lockstep.h"

namespace kvcal::codec {
namespace {

constexpr std::int64_t kTasksWorthThreads = 64;

/// body(warp, index, scratch) for every task. Tasks touch nothing in common but the counters. Scratch is on the heap,
/// where a sanitizer sees a step over its end.
template <typename Scratch, typename Body>
void for_tasks(std::uint64_t tasks, bool reversed, const Body& body) {
  const auto count = static_cast<std::int64_t>(tasks);
  const int threads = count >= kTasksWorthThreads ? omp_get_max_threads() : 1;
  std::vector<std::unique_ptr<Scratch>> scratches;  // made here: nothing may throw among the threads
  for (int i = 0; i < threads; ++i) scratches.push_back(std::make_unique<Scratch>());
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
  for (std::int64_t i = 0; i < count; ++i) {
    LockstepWarp warp(reversed);
    body(warp, static_cast<std::uint32_t>(i), *scratches[static_cast<std::size_t>(omp_get_thread_num())]);
  }
}

}  // namespace

void append_on_cpu(const AppendArguments& a, bool reversed) {
  const KvcalRecordLayout& layout = a.cache.layout;
  const std::uint64_t tasks = task_count(a);
  if (a.keys.data != nullptr)
    with_kernel(layout.key_bits, layout.key_dim, [&]<int kBits, unsigned kDim>() {
      for_tasks<KeyScratch<kDim>>(tasks, reversed,
                                  [&](LockstepWarp& warp, std::uint32_t i, KeyScratch<kDim>& scratch) {
                                    append_keys<LockstepWarp, kBits, kDim>(warp, a, i, scratch);
                                  });
    });
  if (a.values.data != nullptr)
    with_kernel(layout.value_bits, layout.value_dim, [&]<int kBits, unsigned kDim>() {
      for_tasks<ValueScratch<kDim>>(tasks, reversed,
                                    [&](LockstepWarp& warp, std::uint32_t i, ValueScratch<kDim>& scratch) {
                                      append_values<LockstepWarp, kBits, kDim>(warp, a, i, scratch);
                                    });
    });
}

void dequantise_on_cpu(const DequantiseArguments& a, bool reversed) {
  const KvcalRecordLayout& layout = a.cache.layout;
  const std::uint64_t tasks = task_count(a);
  if (a.keys.data != nullptr)
    with_kernel(layout.key_bits, layout.key_dim, [&]<int kBits, unsigned kDim>() {
      for_tasks<ReadScratch<kDim>>(tasks, reversed,
                                   [&](LockstepWarp& warp, std::uint32_t i, ReadScratch<kDim>& scratch) {
                                     dequantise_keys<LockstepWarp, kBits, kDim>(warp, a, i, scratch);
                                   });
    });
  if (a.values.data != nullptr)
    with_kernel(layout.value_bits, layout.value_dim, [&]<int kBits, unsigned kDim>() {
      for_tasks<ReadScratch<kDim>>(tasks, reversed,
                                   [&](LockstepWarp& warp, std::uint32_t i, ReadScratch<kDim>& scratch) {
                                     dequantise_values<LockstepWarp, kBits, kDim>(warp, a, i, scratch);
                                   });
    });
}

}  // namespace kvcal::codec
