// calib/dtype_choice.h: the arithmetic that a model is computed in, as it is asked for.
#pragma once

#include <array>

#include "base/choices.h"

namespace kvcal::calib {

/// The arithmetic of the model.
enum class DtypeChoice {
  automatic,  ///< bfloat16 where the CPU multiplies it natively, else float32
  float32,
  bfloat16,
};

inline constexpr auto kDtypeChoices =
    std::to_array<base::Choice<DtypeChoice>>({{"auto", DtypeChoice::automatic},
                                              {"float32", DtypeChoice::float32},
                                              {"bfloat16", DtypeChoice::bfloat16}});

}  // namespace kvcal::calib
