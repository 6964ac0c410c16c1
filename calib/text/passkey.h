// calib/text/passkey.h: prompts that hide a number in a text about something else, and ask for it: the passkey
// retrieval of Mohtashami and Jaggi (2023, arXiv 2305.16300, section 4.2).
#pragma once

#include <cstdint>
#include <vector>

#include "calib/text/bos_place.h"
#include "calib/text/text_sampler.h"
#include "formats/tokenizer/tokenizer.h"

namespace kvcal::calib {

/// Where in the text the number stands: so many places, evenly spaced from its start to its end.
inline constexpr std::int64_t kPasskeyPlaces = 5;

struct PasskeyPrompts {
  TokenWindows windows;  ///< kPasskeyPlaces for each length, each with its answer at its end
  std::vector<std::int64_t>
      first_scored;  ///< of each window: the position that predicts the answer's first token
};

/// Of at most so many tokens each, and as near below as whole sentences come. The same for the same tokenizer.
/// Throws WrongUsage for a length that has no room for the question, a BOS that the tokenizer does not have.
[[nodiscard]] PasskeyPrompts passkey_prompts(const std::vector<std::int64_t>& lengths, BosPlace bos,
                                             const formats::Tokenizer& tokenizer);

}  // namespace kvcal::calib
