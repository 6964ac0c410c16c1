#include "apps/suggest.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

namespace kvcal::apps {
namespace {

std::string normalised(std::string_view word) {
  std::string result;
  for (const char letter : word) {
    result += letter == '_' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  return result;
}

}  // namespace

int edit_distance(std::string_view left, std::string_view right) {
  const std::size_t columns = right.size() + 1;
  std::vector<int> before(columns), previous(columns), current(columns);
  for (std::size_t j = 0; j < columns; ++j) previous[j] = static_cast<int>(j);
  for (std::size_t i = 1; i <= left.size(); ++i) {
    current[0] = static_cast<int>(i);
    for (std::size_t j = 1; j < columns; ++j) {
      const int replaced = previous[j - 1] + (left[i - 1] == right[j - 1] ? 0 : 1);
      current[j] = std::min({previous[j] + 1, current[j - 1] + 1, replaced});
      const bool swapped = i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
      if (swapped) current[j] = std::min(current[j], before[j - 2] + 1);
    }
    std::swap(before, previous);
    std::swap(previous, current);
  }
  return previous.back();
}

std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates) {
  const std::string typed = normalised(word);
  if (typed.empty()) return std::nullopt;
  const int limit = std::max(2, static_cast<int>(typed.size()) / 3);
  std::optional<std::string> best;
  int best_distance = limit + 1;
  for (const std::string& candidate : candidates) {
    const std::string known = normalised(candidate);
    int distance = edit_distance(typed, known);
    if (typed.size() >= 3 && known.starts_with(typed)) distance = std::min(distance, 1);
    // Two changes to a word of two letters would make any word of it.
    const bool shares_nothing = distance >= static_cast<int>(std::max(typed.size(), known.size()));
    if (!shares_nothing && distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::optional<std::string> foreign_option(std::string_view name) {
  using Answer = std::pair<std::string_view, std::string_view>;
  static constexpr std::array kAnswers = {
      Answer{
          "sparsity-threshold",
          "KVQuant's option is the share kept inside the thresholds; here --outliers is the share outside: "
          "--sparsity-threshold 0.99 is --outliers 0.01"},
      Answer{"first-few-fp16",
             "KVQuant's option is --sinks here: --first_few_fp16 1 is --sinks 1 (the default)"},
      Answer{"abits", "KVQuant's option is --bits here, which takes several at once: --bits 2,3,4"},
      Answer{"nuq", "non-uniform datatypes are what this program always fits; leave the option out"},
      Answer{"quantize", "quantising is what this program always does; leave the option out"},
      Answer{"include-sparse", "outliers are kept apart with --outliers 0.01; --outliers 0 is without"},
      Answer{"cap-outliers",
             "no cap is needed to calibrate: --outliers 0.01 sets the share of outliers of each vector"},
      Answer{"norm", "Q-Norm is always computed and stored beside each datatype; leave the option out"},
      Answer{"qnorm", "Q-Norm is always computed and stored beside each datatype; leave the option out"},
      Answer{
          "fisher",
          "gradients are computed in the same run (--sensitivity fisher, the default); leave the path out"},
      Answer{"maxseqlen", "the option is --seqlen here (2048 by default)"},
      Answer{"max-sequence-length", "the option is --seqlen here (2048 by default)"},
      Answer{"nsamples", "the option is --samples here (16 by default)"},
      Answer{"num-examples", "the option is --samples here (16 by default)"},
      Answer{"num-samples", "the option is --samples here (16 by default)"},
      Answer{"dataset", "give a text file with --text FILE, or token numbers with --tokens FILE.npy"},
      Answer{"quantizer-path", "the codebook to write is named with --out FILE.h5"},
      Answer{"output-dir", "the codebook to write is named with --out FILE.h5"},
      Answer{"model-path", "the option is --model here"},
      Answer{"model-name-or-path", "the option is --model here"},
  };
  const std::string typed = normalised(name);
  for (const auto& [known, answer] : kAnswers) {
    if (typed == known) return std::string(answer);
  }
  return std::nullopt;
}

}  // namespace kvcal::apps
