#include "formats/tokenizer/internal/tokenizer_added.h"

#include <algorithm>
#include <utility>

#include "formats/tokenizer/internal/unicode.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

bool ends_with_word(std::string_view text) {
  if (text.empty()) return false;
  return is_rust_word(utf8_at(text, text.size() - utf8_length_before(text, text.size())).code_point);
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_rust_word(utf8_at(text, 0).code_point);
}

std::size_t white_space_before(std::string_view text, std::size_t at) {
  while (at > 0) {
    const std::size_t length = utf8_length_before(text, at);
    if (!is_white_space(utf8_at(text, at - length).code_point)) break;
    at -= length;
  }
  return at;
}

std::size_t white_space_behind(std::string_view text, std::size_t at) {
  while (at < text.size()) {
    const Utf8Char next = utf8_at(text, at);
    if (!is_white_space(next.code_point)) break;
    at += next.length;
  }
  return at;
}

}  // namespace

void AddedTokenMatcher::add(const std::string& pattern, const AddedToken& token) {
  if (pattern.empty()) return;
  std::size_t node = 0;
  for (const char c : pattern) {
    const auto [entry, is_new] = nodes_[node].next.try_emplace(static_cast<unsigned char>(c), nodes_.size());
    node = entry->second;
    if (is_new) nodes_.emplace_back();
  }
  nodes_[node].token = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back(token);
  first_bytes_[static_cast<unsigned char>(pattern[0])] = true;
}

std::pair<std::size_t, std::int32_t> AddedTokenMatcher::longest(std::string_view text, std::size_t at) const {
  std::pair<std::size_t, std::int32_t> best{at, -1};
  std::size_t node = 0;
  for (std::size_t end = at; end < text.size(); ++end) {
    const auto entry = nodes_[node].next.find(static_cast<unsigned char>(text[end]));
    if (entry == nodes_[node].next.end()) break;
    node = entry->second;
    if (nodes_[node].token >= 0) best = {end + 1, nodes_[node].token};
  }
  return best;
}

std::vector<AddedSpan> AddedTokenMatcher::find(std::string_view text, bool with_special) const {
  std::vector<AddedSpan> spans;
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (!first_bytes_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    const auto [match_end, index] = longest(text, at);
    if (index < 0) {
      ++at;
      continue;
    }
    std::size_t begin = std::exchange(at, match_end);
    std::size_t end = match_end;
    const AddedToken& token = tokens_[static_cast<std::size_t>(index)];
    if (token.special && !with_special) continue;
    if (token.single_word && (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end))))
      continue;
    if (token.lstrip) begin = std::max(white_space_before(text, begin), done);
    if (token.rstrip) end = white_space_behind(text, end);
    if (done < begin) spans.push_back({done, begin, -1});
    // White space that another token took already leaves nothing of this one.
    if (begin < end) spans.push_back({begin, end, token.id});
    done = end;
  }
  if (done != text.size()) spans.push_back({done, text.size(), -1});
  return spans;
}

}  // namespace kvcal::formats
