#include "calib/validate/methods/token_levels.h"

#include "cuda/row_codec.h"

namespace kvcal::calib {
namespace {

class TokenLevelsStorage final : public TensorStorage {
 public:
  TokenLevelsStorage(const codec::Datatype& datatype, const formats::CachedTensor& tensor)
      : datatype_(datatype),
        point_(point_after_rope(tensor)),
        channels_(static_cast<std::size_t>(tensor.channels())) {}

  [[nodiscard]] fisher::CachePoint point() const override { return point_; }

  StorageUse store(std::span<const float> x, std::span<float> read) const override {
    const codec::PackedRows packed =
        codec::encode_values(x, channels_, {}, datatype_, {.sinks = 0, .threads = 1});
    codec::decode_values(packed, datatype_, read, 1);
    const auto values = static_cast<std::int64_t>(x.size());
    return {static_cast<std::int64_t>(packed.bytes()), values, values, 0};
  }

 private:
  codec::Datatype datatype_;
  fisher::CachePoint point_;
  std::size_t channels_;
};

class TokenLevels final : public CacheMethod {
 public:
  explicit TokenLevels(const std::vector<float>& levels) : datatype_(codec::make_datatype(levels)) {}

  [[nodiscard]] std::unique_ptr<TensorStorage> storage(int /*layer*/,
                                                       const formats::CachedTensor& tensor) const override {
    return std::make_unique<TokenLevelsStorage>(datatype_, tensor);
  }

 private:
  codec::Datatype datatype_;
};

}  // namespace

std::unique_ptr<CacheMethod> make_token_levels(std::string_view name, std::string_view prefix,
                                               std::vector<float> (*levels)(int bits)) {
  if (!name.starts_with(prefix)) return nullptr;
  name.remove_prefix(prefix.size());
  if (name != "2" && name != "3" && name != "4") return nullptr;
  return std::make_unique<TokenLevels>(levels(name.front() - '0'));
}

std::vector<std::string> token_levels_names(std::string_view prefix) {
  std::vector<std::string> names;
  for (const char* bits : {"2", "3", "4"}) names.push_back(std::string(prefix) + bits);
  return names;
}

}  // namespace kvcal::calib
