// formats/internal/hdf5_guard_image.h: the bytes under hdf5_guard.h's walk: reads that cannot leave the file,
// errors with their place, and which bytes belong to a structure already.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

namespace kvcal::formats {

/// HDF5's address of what is not stored.
inline constexpr std::uint64_t kNoAddress = ~std::uint64_t{0};

class GuardImage {
 public:
  GuardImage(std::span<const std::byte> bytes, std::string file) : bytes_(bytes), file_(std::move(file)) {}

  [[nodiscard]] std::uint64_t size() const { return bytes_.size(); }
  /// The object that errors name; "superblock" at first.
  [[nodiscard]] const std::string& place() const { return place_; }
  void set_place(std::string place) { place_ = std::move(place); }

  /// A little-endian number of 1 to 8 bytes. Throws outside the file, as the two below.
  [[nodiscard]] std::uint64_t number(std::uint64_t at, unsigned width) const;
  [[nodiscard]] std::string_view text(std::uint64_t at, std::uint64_t length) const;
  void expect(std::uint64_t at, std::string_view signature) const;
  /// The 4 bytes at `end` are the checksum of those before, from `begin`.
  void check_sum(std::uint64_t begin, std::uint64_t end) const;
  [[nodiscard]] bool sum_matches(std::uint64_t begin, std::uint64_t end) const;

  /// The bytes belong to one structure: throws where they leave the file or belong to another one.
  void claim(std::uint64_t at, std::uint64_t length, std::string_view what);

  [[noreturn]] void damaged(std::uint64_t at, std::string_view what) const;
  [[noreturn]] void foreign(std::uint64_t at, std::string_view what) const;

 private:
  std::span<const std::byte> bytes_;
  std::string file_;
  std::string place_ = "superblock";
  std::map<std::uint64_t, std::uint64_t> claims_;  // begin, end
};

/// The nodes of a B-tree, met from left to right: on each level each names the ones beside it. libhdf5 goes from
/// node to node so when it asks how large an object is, and a cycle would keep it for ever.
class GuardSiblings {
 public:
  explicit GuardSiblings(const GuardImage& image) : image_(&image) {}

  /// A node that is claimed.
  void meet(std::uint64_t node, std::uint64_t level);
  /// After the last node.
  void check_ends() const;

 private:
  const GuardImage* image_;
  std::map<std::uint64_t, std::uint64_t> last_;  // on a level, the rightmost so far
};

/// Reads a stretch of the file from front to back; throws "damaged" at its end.
class GuardCursor {
 public:
  GuardCursor(const GuardImage& image, std::uint64_t at, std::uint64_t end)
      : image_(&image), at_(at), end_(end) {}

  [[nodiscard]] std::uint64_t at() const { return at_; }
  [[nodiscard]] std::uint64_t left() const { return end_ - at_; }
  std::uint64_t number(unsigned width);
  std::string_view text(std::uint64_t length);
  /// A number that has to be one of few: `what` and the number are named otherwise.
  std::uint64_t number_to(unsigned width, std::uint64_t least, std::uint64_t most, std::string_view what);
  /// Object headers 1 pad to 8 bytes.
  void pad(std::uint64_t length) { (void)text((8 - length % 8) % 8); }

 private:
  const GuardImage* image_;
  std::uint64_t at_;
  std::uint64_t end_;
};

}  // namespace kvcal::formats
