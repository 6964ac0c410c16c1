#include "formats/internal/hdf5_guard_header.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "base/error.h"

namespace kvcal::formats {
namespace {

using base::concat;

// libhdf5 looks a name up by going through all of them: what it takes is the square of this. The largest
// group, of layers, has 10,000 at most.
constexpr std::size_t kMaxMessages = 16384;

class HeaderReader {
 public:
  explicit HeaderReader(GuardImage& image) : image_(image) {}

  GuardHeader read(std::uint64_t address) {
    header_.old = image_.text(address, 4) != "OHDR";
    std::uint64_t expected = 0;
    if (header_.old) {
      expected = read_old_prefix(address);
    } else {
      read_prefix(address);
    }
    for (std::size_t i = 0; i < blocks_.size(); ++i) read_block(blocks_[i]);
    if (header_.old && header_.messages.size() != expected)
      image_.damaged(address, concat(header_.messages.size(), " messages in a header of ", expected));
    return std::move(header_);
  }

 private:
  struct Block {
    std::uint64_t begin;
    std::uint64_t end;
  };

  /// The number of messages.
  std::uint64_t read_old_prefix(std::uint64_t address) {
    GuardCursor from(image_, address, image_.size());
    (void)from.number_to(1, 1, 1, "an object header of version");
    (void)from.text(1);
    const std::uint64_t count = from.number(2);
    (void)from.text(4);  // how many links there are to it
    const std::uint64_t size = from.number(4);
    (void)from.text(4);
    image_.claim(address, 16 + size, "an object header");
    blocks_.push_back({address + 16, address + 16 + size});
    return count;
  }

  void read_prefix(std::uint64_t address) {
    GuardCursor from(image_, address + 4, image_.size());
    (void)from.number_to(1, 2, 2, "an object header of version");
    const std::uint64_t flags = from.number(1);
    if ((flags & ~std::uint64_t{0x33}) != 0)
      image_.foreign(address + 5, concat("has an object header with the flags ", flags));
    if ((flags & 0x20) != 0) (void)from.text(16);  // times
    if ((flags & 0x10) != 0) (void)from.text(4);   // when attributes would move to a heap
    const std::uint64_t size = from.number(1U << (flags & 3));
    const std::uint64_t begin = from.at();
    (void)from.text(size);
    image_.claim(address, begin + size + 4 - address, "an object header");
    add_block(address, {begin, begin + size});
  }

  /// Its checksum lies behind it, and begins with the signature before it.
  void add_block(std::uint64_t begin, Block block) {
    if (!image_.sum_matches(begin, block.end)) {
      const std::string names = attributes_in(block);
      image_.damaged(block.end, concat("a checksum that does not match",
                                       names.empty() ? "" : concat(", over the attributes ", names)));
    }
    blocks_.push_back(block);
  }

  /// "@bos, @device": of a block that may be damaged, as far as its messages can be followed.
  [[nodiscard]] std::string attributes_in(Block block) const {
    constexpr std::uint64_t kPrefix = 4, kAttribute = 0x0c, kBeforeName = 9;
    constexpr std::size_t kMostShown = 400;
    std::string names;
    for (std::uint64_t at = block.begin; block.end - at >= kPrefix;) {
      const std::uint64_t type = image_.number(at, 1), length = image_.number(at + 1, 2);
      const std::uint64_t begin = at + kPrefix;
      if (length > block.end - begin) break;
      at = begin + length;
      if (type != kAttribute || length < kBeforeName) continue;
      const std::uint64_t name = image_.number(begin + 2, 2);
      if (name == 0 || name > length - kBeforeName) continue;
      const std::string_view text = image_.text(begin + kBeforeName, name - 1);  // without its zero
      const bool plain = std::ranges::all_of(text, [](char c) { return c > ' ' && c < 0x7f; });
      if (plain && names.size() + text.size() < kMostShown)
        names += concat(names.empty() ? "@" : ", @", text);
    }
    return names;
  }

  void read_block(Block block) {
    const unsigned prefix = header_.old ? 8 : 4;
    GuardCursor from(image_, block.begin, block.end);
    while (from.left() >= prefix) {
      GuardMessage message{.type = from.number(header_.old ? 2 : 1)};
      const std::uint64_t length = from.number(2);
      const std::uint64_t flags = from.number(1);
      // Constant, and not to be shared. Others: the message lies elsewhere, or a reader has to know it.
      if ((flags & ~std::uint64_t{0x05}) != 0)
        image_.foreign(from.at(), concat("has a header message with the flags ", flags));
      if (header_.old) (void)from.text(3);
      message.begin = from.at();
      (void)from.text(length);
      message.end = from.at();
      if (header_.old && length % 8 != 0)
        image_.damaged(message.begin, "a header message that is not padded to 8 bytes");
      header_.messages.push_back(message);
      if (header_.messages.size() > kMaxMessages)
        image_.foreign(message.begin, concat("has more than ", kMaxMessages, " header messages"));
      if (message.type == 0x10) follow(message);
    }
    // Version 2 may leave a gap that is too small for a message.
    if (header_.old && from.left() > 0) image_.damaged(from.at(), "a header that ends within a message");
  }

  void follow(const GuardMessage& message) {
    GuardCursor from(image_, message.begin, message.end);
    const std::uint64_t address = from.number(8);
    const std::uint64_t length = from.number(8);
    if (from.left() > 0) image_.damaged(message.begin, "a continuation of an unknown length");
    image_.claim(address, length, "a continuation of a header");
    if (header_.old) {
      blocks_.push_back({address, address + length});
      return;
    }
    if (length < 8) image_.damaged(message.begin, "a continuation too short for its checksum");
    image_.expect(address, "OCHK");
    add_block(address, {address + 4, address + length - 4});
  }

  GuardImage& image_;
  GuardHeader header_;
  std::vector<Block> blocks_;
};

}  // namespace

GuardHeader read_guarded_header(GuardImage& image, std::uint64_t address) {
  return HeaderReader(image).read(address);
}

}  // namespace kvcal::formats
