// formats/tokenizer/internal/bpe.h: byte-pair encoding (Sennrich et al., 2016) of one word,
// as tokenizer.json's model "BPE" defines it.
//
// The pair of neighbours with the lowest merge rank is merged first, the leftmost of equals, until no
// neighbours have a merge: a heap, O(n log n). A word is cut beforehand wherever no merge could ever reach
// across, which changes nothing and makes a whole book without a pre-tokenizer a list of short words, each of
// them encoded once.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace kvcal::formats {

/// The model section of tokenizer.json.
struct BpeDescription {
  std::vector<std::pair<std::string, std::int32_t>> vocab;  ///< ids >= 0, none twice
  /// In the order of their ranks; of equals the last counts.
  std::vector<std::pair<std::string, std::string>> merges;
  std::optional<std::string> unk_token;
  std::string continuing_subword_prefix;  ///< of every character but a word's first
  std::string end_of_word_suffix;         ///< of a word's last character
  bool fuse_unk = false;                  ///< neighbouring unknown characters give one unknown token
  bool byte_fallback = false;             ///< an unknown character as its bytes, <0x00> to <0xFF>
  bool ignore_merges = false;             ///< a word that is a token is that token
};

/// A hash table from pairs of ids, laid out flat.
class PairTable {
 public:
  struct Entry {
    std::uint64_t key = kEmpty;
    std::int32_t rank = 0;
    std::int32_t id = 0;
  };
  void reserve(std::size_t entries);
  /// Inserts or overwrites.
  void set(std::int32_t left, std::int32_t right, std::int32_t rank, std::int32_t id);
  [[nodiscard]] const Entry* find(std::int32_t left, std::int32_t right) const;

 private:
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  [[nodiscard]] std::size_t slot_of(std::uint64_t key) const;
  std::vector<Entry> slots_;
  std::size_t used_ = 0;
};

/// Immutable; any number of threads may encode with one object.
class Bpe {
 public:
  /// What has been encoded before; the caller keeps one per text. Bounded.
  using Cache = std::unordered_map<std::string, std::vector<std::int32_t>>;

  /// Throws InvalidInput: an empty vocabulary, an id that is negative or occurs twice,
  /// a merge of or into what is no token.
  explicit Bpe(const BpeDescription& description);

  /// Appends the ids of a word that is not empty and valid UTF-8. Throws InvalidInput where a character is
  /// unknown and the unknown token is not in the vocabulary; where there is no unknown token at all, the
  /// character is dropped.
  void encode(std::string_view word, std::vector<std::int32_t>& ids, Cache& cache) const;

  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view token) const;
  [[nodiscard]] std::int32_t largest_id() const { return largest_id_; }
  [[nodiscard]] std::size_t size() const { return vocab_.size(); }

 private:
  void add_merges(const BpeDescription& description);
  void add_crossings(const std::vector<std::pair<std::int32_t, std::int32_t>>& merged);
  [[nodiscard]] std::int32_t id_of_character(std::string_view character, bool first, bool last) const;
  void append_symbols(std::string_view word, std::vector<std::int32_t>& symbols) const;
  void merge(const std::int32_t* symbols, std::size_t count, std::vector<std::int32_t>& ids) const;
  void merge_cached(const std::int32_t* symbols, std::size_t count, std::vector<std::int32_t>& ids,
                    Cache& cache) const;

  struct StringHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>> vocab_;
  PairTable merges_;
  PairTable crossings_;                  ///< pairs of symbols that stand on the two sides of some merge
  std::vector<std::int32_t> byte_ids_;   ///< [256], -1 where missing; empty without byte fallback
  std::vector<std::int32_t> ascii_ids_;  ///< [128], of single characters without prefix or suffix
  std::optional<std::string> unk_token_;
  std::int32_t unk_id_ = -1;
  std::string prefix_;
  std::string suffix_;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
  std::int32_t largest_id_ = -1;
};

}  // namespace kvcal::formats
