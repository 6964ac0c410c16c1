// calib/text/validation_windows.h: the windows of texts that a validation scores, by one of three protocols.
//
// Windows are consecutive, do not overlap and begin at each text's start; what does not fill one is left out.
//   kvcal      BOS as in calibration (`each` where the tokenizer itself adds one, else `none`).
//   kvquant    The text with a BOS at its start, where the tokenizer has one, in windows: the first holds the
//              BOS, all later ones are shifted by one token.
//   llama.cpp  The same stream in windows, the first token of each then *replaced* by the BOS, so the BOS costs
//              a token of text; where the tokenizer does not itself add a BOS, there is none. The second half
//              is scored: perplexity() in llama.cpp, tools/perplexity/perplexity.cpp.
// A `bos` that is not automatic overrides the protocol's; llama.cpp's `each` stays the replacing one. A text
// that begins with a BOS of its own is not given a second.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "calib/text/bos_place.h"
#include "calib/text/json_documents.h"
#include "calib/text/protocol.h"
#include "calib/text/text_sampler.h"
#include "formats/tokenizer/tokenizer.h"

namespace kvcal::calib {

/// How many windows there are at most where nobody says a number.
inline constexpr std::int64_t kDefaultWindows = 16;

struct ValidationText {
  std::vector<std::filesystem::path> files;  ///< `-` is standard input
  /// How many windows, exactly; nullopt: as many as there are, up to most_windows. Each text gives an equal
  /// share (the first ones take one more where it does not divide).
  std::optional<std::int64_t> windows;
  std::int64_t most_windows = kDefaultWindows;
  bool all_windows = false;  ///< every window of every text; `windows` is then not read
  std::int64_t seqlen = 2048;
  Protocol protocol = Protocol::kvcal;
  BosPlace bos = BosPlace::automatic;  ///< automatic: the protocol's
  bool parse_special = true;
  std::string text_field = kDefaultTextField;  ///< the member of JSON documents that holds the text
};

/// Windows, and what of each is scored: the logits at positions first_scored to length - 2 of a window, where
/// those at position i predict token i + 1.
struct ScoredWindows {
  TokenWindows windows;
  std::int64_t first_scored = 0;
};

/// Cuts the texts, in their order. Throws InvalidInput for a text that is empty, has no whole window or fewer
/// than its share of an explicit number, saying how many tokens it gave; WrongUsage for no texts, fewer windows
/// than texts, a BOS that the tokenizer does not have, and as first_scored() does.
[[nodiscard]] ScoredWindows validation_windows(const ValidationText& text,
                                               const formats::Tokenizer& tokenizer, base::Progress& progress);

/// The first position whose logits are scored, of windows that came as token ids too: 0, or seqlen / 2 for
/// llama.cpp. Throws WrongUsage where seqlen leaves nothing to score: below 2, or 4 for llama.cpp.
[[nodiscard]] std::int64_t first_scored(Protocol protocol, std::int64_t seqlen);

}  // namespace kvcal::calib
