// The codebook's recipe: each tensor by the datatype that `kvcal allocate` gave it (docs/allocation.md).
#include <algorithm>
#include <array>
#include <string_view>

#include "base/error.h"
#include "calib/validate/cache_method.h"
#include "formats/datatype_choice.h"

namespace kvcal::calib {

MethodFamily recipe_methods();

namespace {

constexpr std::string_view kRecipeName = kRecipeMethod;
constexpr std::array<std::string_view, 3> kForms = {"", kPagedSuffix, kKernelsSuffix};

/// A tensor that the recipe keeps, in the 16 bits that an engine has for it. What is measured is the method, so it comes back
/// as it was, as everything does in full precision.
class KeptStorage final : public TensorStorage {
 public:
  explicit KeptStorage(const formats::CachedTensor& tensor) : channels_(tensor.channels()) {}
  [[nodiscard]] fisher::CachePoint point() const override { return fisher::CachePoint::cached; }
  [[nodiscard]] bool by_token() const override { return true; }
  StorageUse store(std::int64_t /*first*/, std::span<const float> x, std::span<float> read) const override {
    std::ranges::copy(x, read.begin());
    const auto values = static_cast<std::int64_t>(x.size());
    return {.bytes = values * kHalfBytes, .values = values};
  }
  [[nodiscard]] std::int64_t expected_bytes(std::int64_t tokens) const override {
    return tokens * channels_ * kHalfBytes;
  }

 private:
  static constexpr std::int64_t kHalfBytes = 2;
  std::int64_t channels_;
};

class Recipe final : public CacheMethod {
 public:
  Recipe(std::string_view form, const formats::Codebook& codebook) : form_(form), codebook_(codebook) {}

  [[nodiscard]] std::unique_ptr<TensorStorage> storage(int layer,
                                                       const formats::CachedTensor& tensor) const override {
    const formats::TensorRecipe* recipe = codebook_.recipe->find(layer, tensor.name);
    if (recipe == nullptr) {
      throw base::InvalidInput(base::concat(kRecipeName, form_, ": the codebook has none for layer ", layer,
                                            ", ", tensor.name, "; calibrate the whole model anew"));
    }
    if (recipe->bits == formats::kKeptBits) return std::make_unique<KeptStorage>(tensor);
    const formats::DatatypeChoice choice{recipe->bits, recipe->fraction, false};
    return make_method(base::concat(choice.name(), form_), &codebook_)->storage(layer, tensor);
  }

 private:
  std::string_view form_;  // one of kForms
  const formats::Codebook& codebook_;
};

std::vector<std::string> served(const formats::Codebook* codebook) {
  std::vector<std::string> names;
  if (codebook == nullptr || !codebook->recipe) return names;
  for (const std::string_view form : kForms) names.push_back(base::concat(kRecipeName, form));
  return names;
}

std::vector<std::string> by_default(const formats::Codebook* codebook) {
  if (codebook == nullptr || !codebook->recipe) return {};
  return {std::string(kRecipeName)};
}

std::unique_ptr<CacheMethod> make(std::string_view text, const formats::Codebook* codebook) {
  if (!text.starts_with(kRecipeName)) return nullptr;
  const auto form = std::ranges::find(kForms, text.substr(kRecipeName.size()));
  if (form == kForms.end()) return nullptr;
  if (codebook == nullptr)
    throw base::InvalidInput(base::concat(text, " needs a codebook; name one with --codebook"));
  if (!codebook->recipe)
    throw base::InvalidInput(base::concat(text, ": the codebook has no recipe; kvcal allocate writes one"));
  auto recipe = std::make_unique<Recipe>(*form, *codebook);
  // Whether each tensor has such a form is said now.
  for (const formats::LayerCodebook& layer : codebook->layers)
    for (const formats::TensorCodebook& tensor : layer.tensors)
      (void)recipe->storage(layer.index, tensor.tensor);
  return recipe;
}

}  // namespace

MethodFamily recipe_methods() {
  return {{"recipe, recipe-paged, recipe-kernels", "each tensor by the datatype that kvcal allocate gave it"},
          make,
          served,
          by_default};
}

}  // namespace kvcal::calib
