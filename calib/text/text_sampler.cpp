#include "calib/text/text_sampler.h"

#include <algorithm>

#include "base/checked.h"
#include "base/error.h"
#include "base/sha256.h"
#include "calib/text/text_reader.h"
#include "calib/text/text_source.h"
#include "formats/npy.h"

namespace kvcal::calib {
namespace {

// SplitMix64 (Steele et al. 2014): a seed's bits spread over the whole word.
std::uint64_t split_mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

// Where the first window starts: 0, or somewhere in the first window's length as far as the text has tokens
// to spare.
std::int64_t window_start(const TextSampling& sampling, std::int64_t tokens, std::int64_t share) {
  if (sampling.seed == 0) return 0;
  const std::int64_t spare = tokens - share * sampling.seqlen;
  if (spare <= 0) return 0;
  const std::int64_t range = std::min(spare, sampling.seqlen);
  return static_cast<std::int64_t>(split_mix(static_cast<std::uint64_t>(sampling.seed)) %
                                   static_cast<std::uint64_t>(range));
}

}  // namespace

std::span<const std::int32_t> TokenWindows::sample(std::int64_t index) const {
  const std::span row =
      std::span(ids).subspan(static_cast<std::size_t>(index * seqlen), static_cast<std::size_t>(seqlen));
  const auto end = std::find(row.begin(), row.end(), -1);
  return row.first(static_cast<std::size_t>(end - row.begin()));
}

std::int64_t TokenWindows::tokens() const {
  return static_cast<std::int64_t>(ids.size()) - std::count(ids.begin(), ids.end(), -1);
}

std::string TokenWindows::sha256() const {
  return base::sha256_hex(std::as_bytes(std::span(ids)));
}

std::vector<std::vector<std::int32_t>> cut_windows(std::span<const std::int32_t> tokens, std::int64_t seqlen,
                                                   BosPlace bos, std::int32_t bos_id, std::int64_t start) {
  std::vector<std::vector<std::int32_t>> windows;
  auto rest = tokens.subspan(
      static_cast<std::size_t>(std::min<std::int64_t>(start, static_cast<std::int64_t>(tokens.size()))));
  bool first = true;
  while (!rest.empty()) {
    const bool add =
        (bos == BosPlace::each || (bos == BosPlace::first && first && start == 0)) && rest.front() != bos_id;
    const auto wanted = static_cast<std::size_t>(add ? seqlen - 1 : seqlen);
    if (rest.size() < wanted || wanted == 0) break;
    std::vector<std::int32_t> window;
    window.reserve(static_cast<std::size_t>(seqlen));
    if (add) window.push_back(bos_id);
    window.insert(window.end(), rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(wanted));
    windows.push_back(std::move(window));
    rest = rest.subspan(wanted);
    first = false;
  }
  return windows;
}

TokenWindows sample_texts(const TextSampling& sampling, const formats::Tokenizer& tokenizer,
                          base::Progress& progress) {
  const auto files = static_cast<std::int64_t>(sampling.files.size());
  if (sampling.samples < files) {
    throw base::WrongUsage(base::concat("--samples ", sampling.samples, " is fewer than the ", files,
                                        " texts; each gives an equal share, at least one"));
  }
  TokenWindows result;
  result.samples = sampling.samples;
  result.seqlen = sampling.seqlen;
  const BosPlace bos = resolve_bos(sampling.bos, tokenizer);
  result.bos = base::choice_name(bos, kBosPlaces);
  const std::int32_t bos_id = tokenizer.bos_id().value_or(-1);
  const TextReading reading{sampling.text_field, sampling.parse_special};
  bool special = false;
  for (std::int64_t i = 0; i < files; ++i) {
    const std::filesystem::path& file = sampling.files[static_cast<std::size_t>(i)];
    progress.check_interrupted();
    const Text text = read_text(file, reading, tokenizer, progress, result.warnings);
    special = special || holds_special(text.ids, tokenizer);
    const std::int64_t share = equal_share(sampling.samples, files, i);
    const auto tokens = static_cast<std::int64_t>(text.ids.size());
    const auto windows =
        cut_windows(text.ids, sampling.seqlen, bos, bos_id, window_start(sampling, tokens, share));
    const auto count = static_cast<std::int64_t>(windows.size());
    if (count < share) {
      throw base::InvalidInput(base::concat(source_name(file), ": too short: it gave ", tokens, " tokens, ",
                                            count, " windows of ", sampling.seqlen, ", and ", share,
                                            " are needed; give more text, or lower --samples or --seqlen"));
    }
    for (std::int64_t j = 0; j < share; ++j) {
      const auto& window = windows[static_cast<std::size_t>(j * count / share)];
      result.ids.insert(result.ids.end(), window.begin(), window.end());
    }
    result.texts.push_back(text.info);
  }
  result.chat_template_without_special = tokenizer.has_chat_template() && !special;
  return result;
}

namespace {

void check_ids(std::span<const std::int64_t> ids, const TokenWindows& windows,
               const std::filesystem::path& file, std::int64_t vocab_size) {
  for (std::int64_t row = 0; row < windows.samples; ++row) {
    bool padded = false;
    for (std::int64_t column = 0; column < windows.seqlen; ++column) {
      const std::int64_t id = ids[static_cast<std::size_t>(row * windows.seqlen + column)];
      if (id == -1) {
        padded = true;
        continue;
      }
      const auto place = base::concat(file.string(), ": the token at [", row, ", ", column, "] is ", id);
      if (padded) throw base::InvalidInput(place + ", after padding; -1 may stand only at the end of a row");
      if (id < 0 || id >= vocab_size) {
        throw base::InvalidInput(base::concat(place, ", outside the model's vocabulary of ", vocab_size,
                                              "; was it made with another model's tokenizer?"));
      }
    }
  }
}

}  // namespace

TokenWindows load_tokens(const std::filesystem::path& file, std::int64_t vocab_size) {
  const formats::NpyFile array(file);
  if (array.shape().size() != 2 || array.shape()[0] < 1 || array.shape()[1] < 1) {
    throw base::InvalidInput(
        base::concat(file.string(), ": expected an array [samples, seqlen] of token ids"));
  }
  if (array.dtype() != formats::Dtype::I32 && array.dtype() != formats::Dtype::I64) {
    throw base::InvalidInput(base::concat(file.string(), ": token ids must be int32 or int64, not ",
                                          formats::dtype_name(array.dtype())));
  }
  TokenWindows windows;
  windows.samples = array.shape()[0];
  windows.seqlen = array.shape()[1];
  windows.bos = "given";
  const std::vector<std::int64_t> ids = array.integers();
  check_ids(ids, windows, file, vocab_size);
  windows.ids.assign(ids.begin(), ids.end());
  return windows;
}

}  // namespace kvcal::calib
