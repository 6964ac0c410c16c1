// Mutations of a codebook whose checksums are right: else all but one in four billion would end at the first one. Mended after libFuzzer's own
// change: the superblock's size of the file and checksum, those of object headers (version 2) and of the blocks in which they go on.
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "formats/internal/hdf5_checksum.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

constexpr std::size_t kChecksum = 4;

class Mender {
 public:
  explicit Mender(std::span<std::byte> file) : file_(file) {}

  void mend() {
    constexpr std::size_t kSuperblock = 44, kEnd = 28;
    if (file_.size() < kSuperblock + kChecksum) return;
    const std::uint64_t size = file_.size();
    std::memcpy(file_.data() + kEnd, &size, sizeof(size));
    seal(0, kSuperblock);
    const std::string_view text(reinterpret_cast<const char*>(file_.data()), file_.size());
    for (std::size_t at = text.find("OHDR"); at != std::string_view::npos; at = text.find("OHDR", at + 1))
      mend_header(at);
  }

 private:
  [[nodiscard]] std::uint64_t number(std::size_t at, std::size_t width) const {
    std::uint64_t value = 0;
    if (at + width <= file_.size()) std::memcpy(&value, file_.data() + at, width);
    return value;
  }

  /// The checksum of [begin, end) stands at end.
  void seal(std::uint64_t begin, std::uint64_t end) {
    if (begin > end || end > file_.size() || file_.size() - end < kChecksum) return;
    const std::uint32_t sum = kvcal::formats::hdf5_checksum(file_.subspan(begin, end - begin));
    std::memcpy(file_.data() + end, &sum, kChecksum);
  }

  /// File Format Specification 3.0, IV.A.1.b: signature, version, flags, times, phase change, size of the messages, they.
  void mend_header(std::size_t at) {
    const std::uint64_t flags = number(at + 5, 1);
    const std::size_t size_at = at + 6 + ((flags & 0x20) != 0 ? 16 : 0) + ((flags & 0x10) != 0 ? 4 : 0);
    const std::size_t width = std::size_t{1} << (flags & 3);
    const std::size_t begin = size_at + width;
    const std::uint64_t length = number(size_at, width);
    if (begin > file_.size() || length > file_.size() - begin) return;
    mend_continuations(begin, begin + length, (flags & 4) != 0 ? 6 : 4);
    seal(at, begin + length);
  }

  /// Messages of type 16 hold the address and the length of a further block.
  void mend_continuations(std::size_t at, std::size_t end, std::size_t head) {
    while (at + head <= end) {
      if (number(at, 1) == 16) {
        const std::uint64_t block = number(at + head, 8);
        const std::uint64_t length = number(at + head + 8, 8);
        if (block < file_.size() && length > kChecksum && length <= file_.size() - block)
          seal(block, block + length - kChecksum);
      }
      at += head + number(at + 1, 2);
    }
  }

  std::span<std::byte> file_;
};

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned int seed) {
  const std::size_t changed = LLVMFuzzerMutate(data, size, most);
  // Some stay as they are: checksums are checked, too.
  if (seed % 8 != 0) Mender(std::as_writable_bytes(std::span(data, changed))).mend();
  return changed;
}
