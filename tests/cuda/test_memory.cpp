#include "cuda/test_memory.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/kernels/launch.h"

namespace kvcal::codec {
namespace {

void check(const std::string& problem) {
  if (!problem.empty()) throw std::runtime_error(problem);
}

}  // namespace

KvcalDevice test_device() {
  const char* variable = std::getenv("KVCAL_TEST_DEVICE");
  const std::string name = variable == nullptr ? "" : variable;
  if (name.empty() || name == "cpu") return KVCAL_DEVICE_CPU;
  if (name == "cuda") return KVCAL_DEVICE_CUDA;
  throw std::runtime_error("KVCAL_TEST_DEVICE is '" + name + "'; expected cpu or cuda");
}

TestMemory::TestMemory(std::size_t bytes)
    : size_(bytes), blocks_(std::make_unique<Block[]>(bytes / sizeof(Block) + 1)) {}

TestMemory::TestMemory(const void* from, std::size_t bytes) : TestMemory(bytes) {
  if (bytes > 0) std::memcpy(host(), from, bytes);
}

void* TestMemory::place() {
  if (size_ == 0) return nullptr;
  if (test_device() == KVCAL_DEVICE_CPU) return host();
  if (!device_) {
    void* memory = nullptr;
    check(copy_to_device(host(), size_, &memory));
    device_.reset(static_cast<std::uint8_t*>(memory));
  }
  return device_.get();
}

void TestMemory::copy_to(void* to, std::size_t from, std::size_t bytes) const {
  if (bytes == 0) return;
  if (device_)
    check(copy_from_device(device_.get() + from, bytes, to));
  else
    std::memcpy(to, reinterpret_cast<const std::uint8_t*>(blocks_.get()) + from, bytes);
}

void TestMemory::FreeOnDevice::operator()(std::uint8_t* memory) const {
  free_on_device(memory);
}

}  // namespace kvcal::codec
