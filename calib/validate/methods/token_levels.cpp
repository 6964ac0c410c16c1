#include "calib/validate/methods/token_levels.h"

#include "calib/validate/methods/codec_storage.h"

namespace kvcal::calib {
namespace {

class TokenLevels final : public CacheMethod {
 public:
  explicit TokenLevels(const std::vector<float>& levels) : datatype_(codec::make_datatype(levels)) {}

  [[nodiscard]] std::unique_ptr<TensorStorage> storage(int /*layer*/,
                                                       const formats::CachedTensor& tensor) const override {
    return token_storage({datatype_, point_after_rope(tensor)}, static_cast<std::size_t>(tensor.channels()),
                         {});
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

std::vector<float> uniform_levels(int bits) {
  const int last = (1 << bits) - 1;
  std::vector<float> levels;
  for (int i = 0; i <= last; ++i)
    levels.push_back(2.0F * static_cast<float>(i) / static_cast<float>(last) - 1.0F);
  return levels;
}

std::vector<std::string> token_levels_names(std::string_view prefix) {
  std::vector<std::string> names;
  for (const char* bits : {"2", "3", "4"}) names.push_back(std::string(prefix) + bits);
  return names;
}

}  // namespace kvcal::calib
