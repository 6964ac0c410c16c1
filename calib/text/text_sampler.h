// calib/text/text_sampler.h: calibration windows from texts or from a token array.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "calib/text/bos_place.h"
#include "calib/text/json_documents.h"
#include "formats/codebook.h"
#include "formats/tokenizer/tokenizer.h"

namespace kvcal::calib {

/// Token windows: [samples, seqlen], -1 at the tail of a row is padding.
struct TokenWindows {
  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
  std::vector<std::int32_t> ids;
  std::vector<formats::TextInfo> texts;  ///< names, SHA-256 of bytes as given; empty for a token array
  std::string bos;                       ///< what it came to: each, first, none; "given" for a token array
  std::vector<std::string> warnings;     ///< of the texts themselves: read_text()'s
  /// The model has a chat template, the texts hold no special token.
  bool chat_template_without_special = false;

  /// The ids of a sample without its padding.
  [[nodiscard]] std::span<const std::int32_t> sample(std::int64_t index) const;
  /// All ids but the padding.
  [[nodiscard]] std::int64_t tokens() const;
  /// SHA-256 of ids as little-endian int32.
  [[nodiscard]] std::string sha256() const;
};

struct TextSampling {
  std::vector<std::filesystem::path> files;  ///< `-` is standard input
  std::int64_t samples = 16;
  std::int64_t seqlen = 2048;
  BosPlace bos = BosPlace::automatic;
  bool parse_special = true;
  std::string text_field = kDefaultTextField;  ///< the member of JSON documents that holds the text
  std::int64_t seed = 0;                       ///< other than 0 shifts where each text's windows start
};

/// Cuts each text into windows that do not overlap and takes an equal share of `samples` from each (the first
/// files take one more where it does not divide), evenly spaced from its start. With bos `each` a window is a
/// BOS and seqlen - 1 tokens, or seqlen tokens where the text itself has a BOS there: never two in a row.
/// Throws InvalidInput for an empty text or one that is too short, saying how many tokens it gave; WrongUsage
/// for fewer samples than texts or a BOS that the tokenizer does not have.
[[nodiscard]] TokenWindows sample_texts(const TextSampling& sampling, const formats::Tokenizer& tokenizer,
                                        base::Progress& progress);

/// A .npy of int32 or int64 [samples, seqlen]. Throws InvalidInput naming the row, column and value of an id
/// outside [0, vocab_size) that is not padding at a row's tail.
[[nodiscard]] TokenWindows load_tokens(const std::filesystem::path& file, std::int64_t vocab_size);

/// Cuts one text's tokens: every window in order, without the share being taken. `bos` is not automatic:
/// what that comes to is the tokenizer's. For sample_texts and the tests.
[[nodiscard]] std::vector<std::vector<std::int32_t>> cut_windows(std::span<const std::int32_t> tokens,
                                                                 std::int64_t seqlen, BosPlace bos,
                                                                 std::int32_t bos_id, std::int64_t start);

}  // namespace kvcal::calib
