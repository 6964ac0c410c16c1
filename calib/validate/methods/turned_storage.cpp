#include "calib/validate/methods/turned_storage.h"

#include <utility>
#include <vector>

#include "cuda/hadamard.h"

namespace kvcal::calib {
namespace {

class TurnedStorage final : public TensorStorage {
 public:
  TurnedStorage(std::unique_ptr<TensorStorage> inner, std::size_t block)
      : inner_(std::move(inner)), block_(block) {}

  [[nodiscard]] fisher::CachePoint point() const override { return inner_->point(); }
  [[nodiscard]] bool by_token() const override { return inner_->by_token(); }
  [[nodiscard]] std::int64_t expected_bytes(std::int64_t tokens) const override {
    return inner_->expected_bytes(tokens);
  }
  [[nodiscard]] std::int64_t static_bytes() const override { return inner_->static_bytes(); }
  [[nodiscard]] double outlier_fraction() const override { return inner_->outlier_fraction(); }

  StorageUse store(std::int64_t first, std::span<const float> x, std::span<float> read) const override {
    std::vector<float> turned(x.begin(), x.end());
    codec::turn_hadamard(turned, block_);
    const StorageUse use = inner_->store(first, turned, read);
    codec::turn_hadamard(read, block_);
    return use;
  }

 private:
  std::unique_ptr<TensorStorage> inner_;
  std::size_t block_;
};

}  // namespace

std::unique_ptr<TensorStorage> turned_storage(std::unique_ptr<TensorStorage> inner, std::size_t block) {
  return std::make_unique<TurnedStorage>(std::move(inner), block);
}

}  // namespace kvcal::calib
