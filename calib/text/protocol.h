// calib/text/protocol.h: how a validation text is cut and which of its tokens are scored.
#pragma once

#include <array>

#include "base/choices.h"

namespace kvcal::calib {

/// A perplexity depends on where windows start and what they score, so numbers compare only under one
/// protocol: ours, or that of the program whose numbers are to be met.
enum class Protocol {
  kvcal,      ///< BOS as in calibration; every position but the first of each window scored
  kvquant,    ///< as KVQuant evaluates: BOS at the start of the text only; the same positions scored
  llama_cpp,  ///< as llama.cpp's perplexity: BOS in place of each window's first token; second half scored
};

inline constexpr auto kProtocols = std::to_array<base::Choice<Protocol>>(
    {{"kvcal", Protocol::kvcal}, {"kvquant", Protocol::kvquant}, {"llama.cpp", Protocol::llama_cpp}});

}  // namespace kvcal::calib
