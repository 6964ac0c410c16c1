// calib/text/bos_place.h: where the beginning-of-sequence token goes.
#pragma once

#include <array>

#include "base/choices.h"

namespace kvcal::calib {

/// Where the beginning-of-sequence token (BOS) goes.
enum class BosPlace {
  automatic,  ///< each where the tokenizer itself adds a BOS, else none
  each,       ///< at the start of every window, inside its length
  first,      ///< at the start of each text: in its first window, where that was not shifted by a seed
  none,       ///< nowhere: the text as it is
};

inline constexpr auto kBosPlaces = std::to_array<base::Choice<BosPlace>>({{"auto", BosPlace::automatic},
                                                                          {"each", BosPlace::each},
                                                                          {"first", BosPlace::first},
                                                                          {"none", BosPlace::none}});

}  // namespace kvcal::calib
