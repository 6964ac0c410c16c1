// calib/validate/method_names.h: what there is to judge, for people.
#pragma once

#include <string>
#include <vector>

namespace kvcal::calib {

/// "fp": the cache as the model computes it, which every other method is compared with.
inline constexpr const char* kFullPrecision = "fp";

/// Each tensor by the datatype that a codebook's recipe gives it.
inline constexpr const char* kRecipeMethod = "recipe";

/// What a codebook's method is called in paged records: as the CPU codec writes them, and as the kernels do.
inline constexpr const char* kPagedSuffix = "-paged";
inline constexpr const char* kKernelsSuffix = "-kernels";
inline constexpr int kPageTokens = 64;  ///< in a page of those

struct MethodNames {
  std::string names;  ///< how a family's methods are spelt: "int2, int3, int4"
  std::string about;  ///< one line
};

/// Of every family.
[[nodiscard]] std::vector<MethodNames> method_names();

}  // namespace kvcal::calib
