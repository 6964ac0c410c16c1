#include "formats/tokenizer/internal/bpe.h"

#include <algorithm>
#include <array>
#include <queue>

#include "base/error.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

constexpr std::size_t kMostCachedSymbols = 64;
constexpr std::size_t kMostCachedWords = std::size_t{1} << 18;

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

/// A neighbouring pair that could be merged: the heap gives the lowest rank, and of equals the leftmost.
struct Candidate {
  std::int32_t rank;
  std::int32_t id;
  std::int64_t left;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : left > other.left;
  }
};

/// A link of the list of symbols; id < 0 once it has been merged into the one before it.
struct Link {
  std::int32_t id;
  std::int64_t previous;
  std::int64_t next;
};

std::string byte_token(int byte) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  return {'<', '0', 'x', kDigits[byte / 16], kDigits[byte % 16], '>'};
}

}  // namespace

void PairTable::reserve(std::size_t entries) {
  std::size_t size = 16;
  while (size < entries * 2) size *= 2;
  std::vector<Entry> old(size);
  std::swap(old, slots_);
  for (const Entry& entry : old) {
    if (entry.key != kEmpty) slots_[slot_of(entry.key)] = entry;
  }
}

std::size_t PairTable::slot_of(std::uint64_t key) const {
  const std::size_t mask = slots_.size() - 1;
  std::uint64_t mixed = key * 0x9E3779B97F4A7C15ULL;  // Fibonacci hashing
  mixed ^= mixed >> 32;
  std::size_t slot = mixed & mask;
  while (slots_[slot].key != kEmpty && slots_[slot].key != key) slot = (slot + 1) & mask;
  return slot;
}

void PairTable::set(std::int32_t left, std::int32_t right, std::int32_t rank, std::int32_t id) {
  if ((used_ + 1) * 2 > slots_.size()) reserve(used_ * 2 + 8);
  Entry& entry = slots_[slot_of(key_of(left, right))];
  if (entry.key == kEmpty) ++used_;
  entry = {key_of(left, right), rank, id};
}

const PairTable::Entry* PairTable::find(std::int32_t left, std::int32_t right) const {
  if (slots_.empty()) return nullptr;
  const Entry& entry = slots_[slot_of(key_of(left, right))];
  return entry.key == kEmpty ? nullptr : &entry;
}

Bpe::Bpe(const BpeDescription& description)
    : unk_token_(description.unk_token),
      prefix_(description.continuing_subword_prefix),
      suffix_(description.end_of_word_suffix),
      fuse_unk_(description.fuse_unk),
      ignore_merges_(description.ignore_merges) {
  if (description.vocab.empty()) throw base::InvalidInput("the vocabulary is empty");
  vocab_.reserve(description.vocab.size());
  std::unordered_map<std::int32_t, const std::string*> by_id;
  by_id.reserve(description.vocab.size());
  for (const auto& [token, id] : description.vocab) {
    if (id < 0) throw base::InvalidInput(base::concat("the token '", token, "' has the negative id ", id));
    const auto [other, is_new] = by_id.try_emplace(id, &token);
    if (!is_new)
      throw base::InvalidInput(
          base::concat("the tokens '", *other->second, "' and '", token, "' share the id ", id));
    vocab_.emplace(token, id);
    largest_id_ = std::max(largest_id_, id);
  }
  if (unk_token_) unk_id_ = id_of(*unk_token_).value_or(-1);
  if (description.byte_fallback) {
    for (int byte = 0; byte < 256; ++byte) byte_ids_.push_back(id_of(byte_token(byte)).value_or(-1));
  }
  for (char c = 0; static_cast<unsigned char>(c) < 128; ++c) {
    ascii_ids_.push_back(id_of(std::string_view(&c, 1)).value_or(-1));
  }
  add_merges(description);
}

void Bpe::add_merges(const BpeDescription& description) {
  merges_.reserve(description.merges.size());
  std::vector<std::pair<std::int32_t, std::int32_t>> merged;
  merged.reserve(description.merges.size());
  std::int32_t rank = 0;
  for (const auto& pair : description.merges) {
    const std::string& left = pair.first;
    const std::string& right = pair.second;
    const auto checked_id = [&](const std::string& token) {
      const auto id = id_of(token);
      if (!id) {
        throw base::InvalidInput(base::concat("merge ", rank, ", '", left, "' with '", right,
                                              "', needs the token '", token,
                                              "', which is not in the vocabulary"));
      }
      return *id;
    };
    const std::int32_t left_id = checked_id(left);
    const std::int32_t right_id = checked_id(right);
    if (right.size() < prefix_.size()) {
      throw base::InvalidInput(
          base::concat("merge ", rank, ": '", right, "' lacks the continuing_subword_prefix"));
    }
    merges_.set(left_id, right_id, rank, checked_id(left + right.substr(prefix_.size())));
    merged.emplace_back(left_id, right_id);
    ++rank;
  }
  add_crossings(merged);
}

/// A merge reaches across the border of two symbols only if its left token can end in the one and its right
/// token begin with the other. What a token begins with and ends in follows from the merges that make it; a
/// token may be a symbol itself.
void Bpe::add_crossings(const std::vector<std::pair<std::int32_t, std::int32_t>>& merged) {
  if (!prefix_.empty() || !suffix_.empty()) return;  // encode() then cuts nowhere
  using Ends = std::unordered_map<std::int32_t, std::vector<std::int32_t>>;
  Ends firsts;
  for (const auto& [token, id] : vocab_) {
    if (!token.empty() && utf8_at(token, 0).length == token.size()) firsts[id] = {id};
  }
  for (const std::int32_t id : byte_ids_) firsts[id] = {id};
  if (unk_id_ >= 0) firsts[unk_id_] = {unk_id_};
  Ends lasts = firsts;
  const auto grow = [](Ends& ends, std::int32_t part, std::int32_t made) {
    const std::vector<std::int32_t> from = ends[part];
    std::vector<std::int32_t>& to = ends[made];
    bool grown = false;
    for (const std::int32_t id : from) {
      if (std::find(to.begin(), to.end(), id) != to.end()) continue;
      to.push_back(id);
      grown = true;
    }
    return grown;
  };
  // Most files list the merges of a token behind those of its parts: then the second round is the last.
  for (bool changed = true; changed;) {
    changed = false;
    for (const auto& [left, right] : merged) {
      const std::int32_t made = merges_.find(left, right)->id;
      changed = grow(firsts, left, made) || changed;
      changed = grow(lasts, right, made) || changed;
    }
  }
  for (const auto& [left, right] : merged) {
    for (const std::int32_t last : lasts[left]) {
      for (const std::int32_t first : firsts[right]) crossings_.set(last, first, 0, 0);
    }
  }
}

std::optional<std::int32_t> Bpe::id_of(std::string_view token) const {
  const auto found = vocab_.find(token);
  if (found == vocab_.end()) return std::nullopt;
  return found->second;
}

std::int32_t Bpe::id_of_character(std::string_view character, bool first, bool last) const {
  const bool plain = (first || prefix_.empty()) && (!last || suffix_.empty());
  if (plain && character.size() == 1) return ascii_ids_[static_cast<unsigned char>(character[0])];
  if (plain) return id_of(character).value_or(-1);
  return id_of((first ? "" : prefix_) + std::string(character) + (last ? suffix_ : "")).value_or(-1);
}

/// The reference's order, oddity included: an unknown token waits for the next known character, so that bytes
/// of a character in between come before it.
void Bpe::append_symbols(std::string_view word, std::vector<std::int32_t>& symbols) const {
  bool unknown_waits = false;
  const auto flush = [&] {
    if (unknown_waits) symbols.push_back(unk_id_);
    unknown_waits = false;
  };
  for (std::size_t at = 0; at < word.size();) {
    const bool first = at == 0;
    const std::string_view character = word.substr(at, utf8_at(word, at).length);
    at += character.size();
    const bool last = at == word.size();
    const std::int32_t id = id_of_character(character, first, last);
    if (id >= 0) {
      flush();
      symbols.push_back(id);
      continue;
    }
    if (!byte_ids_.empty()) {
      const std::string whole = (first ? "" : prefix_) + std::string(character) + (last ? suffix_ : "");
      const auto byte_id = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)]; };
      if (std::all_of(whole.begin(), whole.end(), [&](char c) { return byte_id(c) >= 0; })) {
        for (const char c : whole) symbols.push_back(byte_id(c));
        continue;
      }
    }
    if (!unk_token_) continue;
    if (unk_id_ < 0) {
      throw base::InvalidInput(base::concat("the character '", character,
                                            "' is not in the vocabulary, nor is the unk_token '", *unk_token_,
                                            "'"));
    }
    if (!fuse_unk_) flush();
    unknown_waits = true;
  }
  flush();
}

void Bpe::merge(const std::int32_t* symbols, std::size_t count, std::vector<std::int32_t>& ids) const {
  std::vector<Link> links(count);
  std::vector<Candidate> start;
  for (std::size_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::int64_t>(i);
    links[i] = {symbols[i], at - 1, i + 1 < count ? at + 1 : -1};
    if (i + 1 == count) break;
    if (const auto* entry = merges_.find(symbols[i], symbols[i + 1]))
      start.push_back({entry->rank, entry->id, at});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap(std::greater<>{},
                                                                              std::move(start));
  const auto propose = [&](std::int64_t left, std::int64_t right) {
    if (left < 0 || right < 0) return;
    const auto* entry =
        merges_.find(links[static_cast<std::size_t>(left)].id, links[static_cast<std::size_t>(right)].id);
    if (entry != nullptr) heap.push({entry->rank, entry->id, left});
  };
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Link& left = links[static_cast<std::size_t>(top.left)];
    if (left.id < 0 || left.next < 0) continue;
    Link& right = links[static_cast<std::size_t>(left.next)];
    const auto* entry = merges_.find(left.id, right.id);
    if (entry == nullptr || entry->id != top.id) continue;  // one of the two has changed since
    left.id = top.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) links[static_cast<std::size_t>(left.next)].previous = top.left;
    propose(left.previous, top.left);
    propose(top.left, left.next);
  }
  for (const Link& link : links) {
    if (link.id >= 0) ids.push_back(link.id);
  }
}

void Bpe::merge_cached(const std::int32_t* symbols, std::size_t count, std::vector<std::int32_t>& ids,
                       Cache& cache) const {
  if (count == 1) return ids.push_back(symbols[0]);
  if (count > kMostCachedSymbols) return merge(symbols, count, ids);
  const std::string key(reinterpret_cast<const char*>(symbols), count * sizeof(std::int32_t));
  if (const auto found = cache.find(key); found != cache.end()) {
    ids.insert(ids.end(), found->second.begin(), found->second.end());
    return;
  }
  const auto before = static_cast<std::ptrdiff_t>(ids.size());
  merge(symbols, count, ids);
  if (cache.size() >= kMostCachedWords) cache.clear();
  cache.emplace(key, std::vector<std::int32_t>(ids.begin() + before, ids.end()));
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& ids, Cache& cache) const {
  if (ignore_merges_) {
    if (const auto id = id_of(word)) return ids.push_back(*id);
  }
  std::vector<std::int32_t> symbols;
  symbols.reserve(word.size());
  append_symbols(word, symbols);
  const bool cuttable = prefix_.empty() && suffix_.empty();
  for (std::size_t begin = 0; begin < symbols.size();) {
    std::size_t end = begin + 1;
    while (end < symbols.size() && (!cuttable || crossings_.find(symbols[end - 1], symbols[end]) != nullptr))
      ++end;
    merge_cached(symbols.data() + begin, end - begin, ids, cache);
    begin = end;
  }
}

}  // namespace kvcal::formats
