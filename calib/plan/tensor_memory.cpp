#include "calib/plan/tensor_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <limits>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <vector>

namespace kvcal::calib {
namespace {

// Smaller tensors are the C library's: it keeps them itself.
constexpr std::size_t kSmallestPooled = std::size_t{1} << 18;
// Before a tensor lies its block's size; tensors begin at a cache line.
constexpr std::size_t kHeader = 64;
// Blocks are made in eighths of a power of two, so that samples of about the same length share them; what no
// tensor touches is never resident.
constexpr int kSteps = 8;

std::size_t block_size(std::size_t bytes) {
  const std::size_t step = std::bit_floor(bytes) / kSteps;
  return (bytes + step - 1) / step * step;
}

/// The blocks that wait, by size, and a count of the tensors in use.
class Pool {
 public:
  void* take(std::size_t bytes) {
    if (bytes < kSmallestPooled) return with_header(allocate_small(bytes), bytes);
    const std::size_t size = block_size(bytes);
    void* block = take_waiting(size);
    if (block == nullptr) block = map_block(size);
    return with_header(block, bytes);
  }

  void give_back(void* data) {
    void* block = static_cast<char*>(data) - kHeader;
    const std::size_t bytes = *static_cast<std::size_t*>(block);
    count(bytes, -1);
    if (bytes < kSmallestPooled) return std::free(block);
    const std::scoped_lock lock(mutex_);
    waiting_[block_size(bytes)].push_back(block);
  }

  void release() {
    const std::scoped_lock lock(mutex_);
    release_locked();
  }

  void set_limit(std::int64_t bytes) {
    const std::scoped_lock lock(mutex_);
    limit_ = bytes;
  }
  std::int64_t held() {
    const std::scoped_lock lock(mutex_);
    return held_;
  }

  void begin_count() {
    const std::scoped_lock lock(mutex_);
    counted_.emplace();
  }
  std::int64_t end_count() {
    const std::scoped_lock lock(mutex_);
    std::int64_t total = 0;
    for (const auto& [bytes, uses] : *counted_) total += static_cast<std::int64_t>(bytes) * uses.most;
    counted_.reset();
    return total;
  }

 private:
  struct Uses {
    std::int64_t now = 0, most = 0;
  };

  void* take_waiting(std::size_t size) {
    const std::scoped_lock lock(mutex_);
    const auto found = waiting_.find(size);
    if (found == waiting_.end() || found->second.empty()) return nullptr;
    void* block = found->second.back();
    found->second.pop_back();
    return block;
  }

  void release_locked() {
    for (auto& [size, blocks] : waiting_) {
      for (void* block : blocks) {
        ::munmap(block, size + kHeader);
        held_ -= static_cast<std::int64_t>(size);
      }
    }
    waiting_.clear();
  }

  void* map_block(std::size_t size) {
    {
      const std::scoped_lock lock(mutex_);
      if (held_ + static_cast<std::int64_t>(size) > limit_) release_locked();
      held_ += static_cast<std::int64_t>(size);
    }
    void* block = ::mmap(nullptr, size + kHeader, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    return block;
  }

  static void* allocate_small(std::size_t bytes) {
    void* block = std::aligned_alloc(kHeader, (bytes + 2 * kHeader - 1) / kHeader * kHeader);
    if (block == nullptr) throw std::bad_alloc();
    return block;
  }

  void* with_header(void* block, std::size_t bytes) {
    *static_cast<std::size_t*>(block) = bytes;
    count(bytes, 1);
    return static_cast<char*>(block) + kHeader;
  }

  void count(std::size_t bytes, std::int64_t change) {
    const std::scoped_lock lock(mutex_);
    if (!counted_) return;
    Uses& uses = (*counted_)[bytes];
    uses.now += change;
    uses.most = std::max(uses.most, uses.now);
  }

  std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> waiting_;
  std::int64_t held_ = 0;  // bytes of all blocks, in use or waiting
  std::int64_t limit_ = std::numeric_limits<std::int64_t>::max();
  std::optional<std::map<std::size_t, Uses>> counted_;
};

// Never destroyed: tensors may be freed at exit.
Pool& pool() {
  static Pool& instance = *new Pool;
  return instance;
}

void free_tensor(void* data) {
  if (data != nullptr) pool().give_back(data);
}

class PooledAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    void* data = bytes == 0 ? nullptr : pool().take(bytes);
    return {data, data, &free_tensor, c10::Device(c10::DeviceType::CPU)};
  }
  [[nodiscard]] c10::DeleterFnPtr raw_deleter() const override { return &free_tensor; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

constexpr std::uint8_t kPriority = 100;

}  // namespace

TensorMemory::TensorMemory() : previous_(c10::GetCPUAllocator()) {
  static PooledAllocator& allocator = *new PooledAllocator;
  c10::SetCPUAllocator(&allocator, kPriority);
}

TensorMemory::~TensorMemory() {
  c10::SetCPUAllocator(static_cast<c10::Allocator*>(previous_), kPriority);
  set_limit(std::numeric_limits<std::int64_t>::max());
  release();
}

void TensorMemory::set_limit(std::int64_t bytes) {
  pool().set_limit(bytes);
}

std::int64_t TensorMemory::held() {
  return pool().held();
}

void TensorMemory::release() {
  pool().release();
}

std::int64_t TensorMemory::count(const std::function<void()>& work) {
  pool().begin_count();
  try {
    work();
  } catch (...) {
    (void)pool().end_count();
    throw;
  }
  return pool().end_count();
}

}  // namespace kvcal::calib
