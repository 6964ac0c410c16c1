// Uniform levels from the smallest to the largest number of each token; real-valued zero.
#include "calib/validate/methods/token_levels.h"

namespace kvcal::calib {

MethodFamily uniform_methods();

namespace {

std::unique_ptr<CacheMethod> make(std::string_view name, const formats::Codebook* /*codebook*/) {
  return make_token_levels(name, "int", uniform_levels);
}

std::vector<std::string> names(const formats::Codebook* /*codebook*/) {
  return token_levels_names("int");
}

}  // namespace

MethodFamily uniform_methods() {
  return {{"int2, int3, int4", "uniform levels on each token's range, keys after RoPE"}, make, names, names};
}

}  // namespace kvcal::calib
