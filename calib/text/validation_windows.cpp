#include "calib/text/validation_windows.h"

#include <limits>
#include <span>

#include "base/error.h"
#include "calib/text/text_reader.h"
#include "calib/text/text_source.h"

namespace kvcal::calib {
namespace {

BosPlace protocol_bos(const ValidationText& text, const formats::Tokenizer& tokenizer) {
  if (text.bos == BosPlace::automatic && text.protocol == Protocol::kvquant) {
    return tokenizer.bos_id() ? BosPlace::first : BosPlace::none;
  }
  // For llama.cpp, too, automatic is `each` only where the tokenizer adds a BOS: its add_bos.
  return resolve_bos(text.bos, tokenizer);
}

std::vector<std::vector<std::int32_t>> protocol_windows(std::span<const std::int32_t> tokens,
                                                        const ValidationText& text, BosPlace bos,
                                                        std::int32_t bos_id) {
  if (text.protocol != Protocol::llama_cpp || bos != BosPlace::each) {
    return cut_windows(tokens, text.seqlen, bos, bos_id, 0);
  }
  auto windows = cut_windows(tokens, text.seqlen, BosPlace::first, bos_id, 0);
  for (auto& window : windows) window.front() = bos_id;
  return windows;
}

void check_counts(const ValidationText& text) {
  const auto files = static_cast<std::int64_t>(text.files.size());
  if (files == 0) throw base::WrongUsage("no text to validate on; give --text FILE or --tokens FILE.npy");
  if (text.all_windows) return;
  const std::int64_t wanted = text.windows.value_or(text.most_windows);
  if (wanted < files) {
    throw base::WrongUsage(base::concat("--windows ", wanted, text.windows ? "" : " (the default)",
                                        " is fewer than the ", files,
                                        " texts; each gives an equal share, at least one"));
  }
}

// The most windows that a text gives.
std::int64_t text_share(const ValidationText& text, std::int64_t index) {
  if (text.all_windows) return std::numeric_limits<std::int64_t>::max();
  return equal_share(text.windows.value_or(text.most_windows), static_cast<std::int64_t>(text.files.size()),
                     index);
}

// How many windows are taken of the `count` that a text of `tokens` tokens has.
std::int64_t taken_windows(const ValidationText& text, std::int64_t index, std::int64_t tokens,
                           std::int64_t count) {
  const std::filesystem::path& file = text.files[static_cast<std::size_t>(index)];
  if (count == 0) {
    throw base::InvalidInput(base::concat(source_name(file), ": too short: it gave ", tokens,
                                          " tokens, not one whole window of ", text.seqlen,
                                          "; give more text, or lower --seqlen"));
  }
  const std::int64_t share = text_share(text, index);
  if (count >= share) return share;
  if (text.windows && !text.all_windows) {
    const auto files = static_cast<std::int64_t>(text.files.size());
    throw base::InvalidInput(base::concat(source_name(file), ": too short: it gave ", tokens, " tokens, ",
                                          count, " windows of ", text.seqlen, ", and ", share,
                                          " are needed; give more text, or ask for fewer with --windows ",
                                          count * files, " or --windows all"));
  }
  return count;
}

}  // namespace

std::int64_t first_scored(Protocol protocol, std::int64_t seqlen) {
  const std::int64_t least = protocol == Protocol::llama_cpp ? 4 : 2;
  if (seqlen < least) {
    throw base::WrongUsage(base::concat("--seqlen ", seqlen, " leaves nothing to score: --protocol ",
                                        base::choice_name(protocol, kProtocols), " needs at least ", least));
  }
  return protocol == Protocol::llama_cpp ? seqlen / 2 : 0;
}

ScoredWindows validation_windows(const ValidationText& text, const formats::Tokenizer& tokenizer,
                                 base::Progress& progress) {
  ScoredWindows result;
  result.first_scored = first_scored(text.protocol, text.seqlen);
  check_counts(text);
  TokenWindows& windows = result.windows;
  windows.seqlen = text.seqlen;
  const BosPlace bos = protocol_bos(text, tokenizer);
  windows.bos = base::choice_name(bos, kBosPlaces);
  const std::int32_t bos_id = tokenizer.bos_id().value_or(-1);
  const TextReading reading{text.text_field, text.parse_special};
  bool special = false;
  for (std::size_t i = 0; i < text.files.size(); ++i) {
    progress.check_interrupted();
    const Text read = read_text(text.files[i], reading, tokenizer, progress, windows.warnings);
    special = special || holds_special(read.ids, tokenizer);
    const auto cut = protocol_windows(read.ids, text, bos, bos_id);
    const std::int64_t taken =
        taken_windows(text, static_cast<std::int64_t>(i), static_cast<std::int64_t>(read.ids.size()),
                      static_cast<std::int64_t>(cut.size()));
    for (const auto& window : std::span(cut).first(static_cast<std::size_t>(taken))) {
      windows.ids.insert(windows.ids.end(), window.begin(), window.end());
    }
    windows.samples += taken;
    windows.texts.push_back(read.info);
  }
  windows.chat_template_without_special = tokenizer.has_chat_template() && !special;
  return result;
}

}  // namespace kvcal::calib
