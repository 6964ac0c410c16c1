#include "calib/plan/tensor_memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <optional>
#include <stdexcept>
#include <thread>

namespace kvcal::calib {
namespace {

constexpr std::int64_t kFloats = 1 << 20;

TEST(TensorMemory, AFreedBlockServesTheNextTensorOfItsSize) {
  const TensorMemory memory;
  constexpr std::int64_t kSize = kFloats + kFloats / 10;
  void* first = at::empty({kSize}).data_ptr();
  EXPECT_EQ(at::empty({kSize}).data_ptr(), first);
  EXPECT_EQ(at::empty({kFloats + kFloats / 16}).data_ptr(), first);  // about its size will do
  EXPECT_NE(at::empty({kFloats / 2}).data_ptr(), first);
}

TEST(TensorMemory, TensorsKeepWhatTheyHold) {
  const TensorMemory memory;
  const at::Tensor ones = at::ones({kFloats});
  for (const std::int64_t size : {std::int64_t{1}, std::int64_t{1000}, kFloats - 1, kFloats, kFloats + 1}) {
    at::Tensor other = at::zeros({size});
    other.fill_(2);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(other.data_ptr()) % 64, 0U);
    EXPECT_EQ(other.sum().item<double>(), 2.0 * static_cast<double>(size));
  }
  TensorMemory::release();
  EXPECT_EQ(ones.sum().item<double>(), static_cast<double>(kFloats));
  EXPECT_EQ(at::empty({0}).numel(), 0);
}

TEST(TensorMemory, TensorsMayOutliveItAndChangeThreads) {
  at::Tensor survivor;
  {
    const TensorMemory memory;
    std::thread([&] { survivor = at::full({kFloats}, 3.0F); }).join();
  }
  EXPECT_EQ(survivor.sum().item<double>(), 3.0 * static_cast<double>(kFloats));
  const at::Tensor plain = at::ones({kFloats});  // from libtorch's own allocator again
  survivor.reset();
  EXPECT_EQ(plain.sum().item<double>(), static_cast<double>(kFloats));
}

TEST(TensorMemory, BlocksOfManySizesStayWithinALimit) {
  const TensorMemory memory;
  constexpr std::int64_t kLimit = 10 * 4 * kFloats;
  TensorMemory::set_limit(kLimit);
  for (std::int64_t eighths = 8; eighths <= 64; ++eighths) {
    const at::Tensor length = at::empty({kFloats / 8 * eighths});
    EXPECT_LE(TensorMemory::held(), kLimit);
    EXPECT_GE(TensorMemory::held(), 4 * length.numel());
  }
  // What is in use is never refused.
  const at::Tensor large = at::ones({11 * kFloats});
  EXPECT_EQ(large.sum().item<double>(), 11.0 * static_cast<double>(kFloats));
  TensorMemory::release();
  EXPECT_LE(TensorMemory::held(), 12 * 4 * kFloats);
}

TEST(TensorMemory, CountsTheMostInUseOfEachSize) {
  const TensorMemory memory;
  const std::int64_t counted = TensorMemory::count([] {
    const at::Tensor kept = at::empty({kFloats});
    for (int i = 0; i < 5; ++i) {
      const at::Tensor again = at::empty({kFloats});
      const at::Tensor small = at::empty({10});
    }
  });
  EXPECT_EQ(counted, 4 * (2 * kFloats + 10));
  EXPECT_THROW((void)TensorMemory::count([] { throw std::runtime_error("x"); }), std::runtime_error);
  EXPECT_EQ(TensorMemory::count([] {}), 0);
}

}  // namespace
}  // namespace kvcal::calib
