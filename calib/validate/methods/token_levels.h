// calib/validate/methods/token_levels.h: fixed levels over the range of each token: what the methods without a
// calibration share.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calib/validate/cache_method.h"

namespace kvcal::calib {

/// A family of methods "<prefix>2", "<prefix>3", "<prefix>4" that stores keys after RoPE, and values, as codes of
/// 2^bits levels on [minimum, maximum] of each token over all its channels; scale and zero fp16, no sinks, no
/// outliers. levels: ascending, in [-1, 1]. Null where the name is not one of those three.
[[nodiscard]] std::unique_ptr<CacheMethod> make_token_levels(std::string_view name, std::string_view prefix,
                                                             std::vector<float> (*levels)(int bits));

/// 2^bits numbers at equal distances from -1 to 1.
[[nodiscard]] std::vector<float> uniform_levels(int bits);

/// The three names.
[[nodiscard]] std::vector<std::string> token_levels_names(std::string_view prefix);

}  // namespace kvcal::calib
