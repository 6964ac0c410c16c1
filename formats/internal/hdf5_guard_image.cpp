#include "formats/internal/hdf5_guard_image.h"

#include <algorithm>

#include "base/error.h"
#include "formats/internal/hdf5_checksum.h"

namespace kvcal::formats {
namespace {

using base::concat;

/// Names come from the file: what a terminal would obey is shown as '?'.
std::string shown(std::string text) {
  std::ranges::replace_if(
      text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return text;
}

}  // namespace

void GuardImage::damaged(std::uint64_t at, std::string_view what) const {
  throw base::InvalidInput(
      concat(file_, ": a damaged or truncated HDF5 file: ", shown(place_), ": ", what, " (byte ", at, ")"));
}

void GuardImage::foreign(std::uint64_t at, std::string_view what) const {
  throw base::InvalidInput(
      concat(file_, ": ", shown(place_), ": ", what, " (byte ", at, "); kvcal did not write it"));
}

std::string_view GuardImage::text(std::uint64_t at, std::uint64_t length) const {
  if (at > size() || length > size() - at)
    damaged(at, concat(length, " bytes are expected here; the file has ", size()));
  return {reinterpret_cast<const char*>(bytes_.data()) + at, static_cast<std::size_t>(length)};
}

std::uint64_t GuardImage::number(std::uint64_t at, unsigned width) const {
  std::uint64_t value = 0;
  const std::string_view raw = text(at, width);
  for (unsigned i = width; i-- > 0;) value = value << 8 | static_cast<unsigned char>(raw[i]);
  return value;
}

void GuardImage::expect(std::uint64_t at, std::string_view signature) const {
  if (text(at, signature.size()) != signature) damaged(at, concat("no ", signature, " where one should be"));
}

bool GuardImage::sum_matches(std::uint64_t begin, std::uint64_t end) const {
  const std::string_view checked = text(begin, end - begin);
  return hdf5_checksum(std::as_bytes(std::span(checked))) == number(end, 4);
}

void GuardImage::check_sum(std::uint64_t begin, std::uint64_t end) const {
  if (!sum_matches(begin, end)) damaged(end, "a checksum that does not match");
}

void GuardImage::claim(std::uint64_t at, std::uint64_t length, std::string_view what) {
  (void)text(at, length);
  if (length == 0) damaged(at, concat(what, " of no bytes"));
  const auto next = claims_.lower_bound(at);
  const bool meets_next = next != claims_.end() && next->first < at + length;
  if (meets_next || (next != claims_.begin() && std::prev(next)->second > at))
    damaged(at, concat(what, " on bytes that belong to something else"));
  claims_.emplace_hint(next, at, at + length);
}

void GuardSiblings::meet(std::uint64_t node, std::uint64_t level) {
  const auto [last, first] = last_.try_emplace(level, node);
  const bool joined = first || image_->number(last->second + 16, 8) == node;
  if (!joined || image_->number(node + 8, 8) != (first ? kNoAddress : last->second))
    image_->damaged(node + 8, "a B-tree whose node does not name the ones beside it");
  last->second = node;
}

void GuardSiblings::check_ends() const {
  for (const auto& [level, node] : last_) {
    if (image_->number(node + 16, 8) != kNoAddress)
      image_->damaged(node + 16, "a B-tree whose last node names another");
  }
}

std::string_view GuardCursor::text(std::uint64_t length) {
  if (length > left()) image_->damaged(at_, concat("a message that ends ", length - left(), " bytes early"));
  at_ += length;
  return image_->text(at_ - length, length);
}

std::uint64_t GuardCursor::number(unsigned width) {
  const std::uint64_t at = at_;
  (void)text(width);
  return image_->number(at, width);
}

std::uint64_t GuardCursor::number_to(unsigned width, std::uint64_t least, std::uint64_t most,
                                     std::string_view what) {
  const std::uint64_t at = at_;
  const std::uint64_t value = number(width);
  if (value < least || value > most) image_->foreign(at, concat("has ", what, " ", value));
  return value;
}

}  // namespace kvcal::formats
