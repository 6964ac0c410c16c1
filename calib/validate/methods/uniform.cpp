// Uniform levels from the smallest to the largest number of each token; real-valued zero.
#include "calib/validate/methods/token_levels.h"

namespace kvcal::calib {

MethodFamily uniform_methods();

namespace {

std::vector<float> levels(int bits) {
  const int last = (1 << bits) - 1;
  std::vector<float> result;
  for (int i = 0; i <= last; ++i)
    result.push_back(2.0F * static_cast<float>(i) / static_cast<float>(last) - 1.0F);
  return result;
}

std::unique_ptr<CacheMethod> make(std::string_view name, const formats::Codebook* /*codebook*/) {
  return make_token_levels(name, "int", levels);
}

std::vector<std::string> names(const formats::Codebook* /*codebook*/) {
  return token_levels_names("int");
}

}  // namespace

MethodFamily uniform_methods() {
  return {{"int2, int3, int4", "uniform levels on each token's range, keys after RoPE"}, make, names, names};
}

}  // namespace kvcal::calib
