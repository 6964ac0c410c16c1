// NormalFloat (Dettmers et al. 2023, arXiv 2305.14314): levels at quantiles of the normal distribution, one of
// them 0, on each token's range.
//
// Of 2^b levels 2^(b-1) are positive and one fewer negative, at normal quantiles of equal steps of probability
// from 0.5 up to 0.9677083, the whole divided by the largest: with 4 bits these are the 16 numbers of NF4.
#include "calib/validate/methods/token_levels.h"

namespace kvcal::calib {

MethodFamily normal_float_methods();

namespace {

std::vector<float> levels(int bits) {
  switch (bits) {
    case 2:
      return {-1.0F, 0.0F, 0.337915194F, 1.0F};
    case 3:
      return {-1.0F, -0.47862916F, -0.217141818F, 0.0F, 0.160930173F, 0.337915194F, 0.56261697F, 1.0F};
    default:
      return {-1.0F,          -0.696192891F, -0.525073039F, -0.394917491F, -0.284441358F, -0.184773435F,
              -0.0910499921F, 0.0F,          0.0795803291F, 0.160930173F,  0.246112294F,  0.337915194F,
              0.440709802F,   0.56261697F,   0.722956728F,  1.0F};
  }
}

std::unique_ptr<CacheMethod> make(std::string_view name, const formats::Codebook* /*codebook*/) {
  return make_token_levels(name, "nf", levels);
}

std::vector<std::string> names(const formats::Codebook* /*codebook*/) {
  return token_levels_names("nf");
}

}  // namespace

MethodFamily normal_float_methods() {
  return {{"nf2, nf3, nf4", "NormalFloat levels on each token's range, keys after RoPE"}, make, names, names};
}

}  // namespace kvcal::calib
