#include "calib/text/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "base/error.h"

namespace kvcal::calib {
namespace {

using base::concat;
using base::InvalidInput;

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
constexpr int kGzipOnly = 16 + MAX_WBITS;  // inflateInit2's code for a gzip header and the largest window

/// zlib's inflate, over one span.
class Inflater {
 public:
  Inflater(std::span<const std::byte> bytes, const std::string& what, const InflateLimits& limits)
      : rest_(bytes), size_(bytes.size()), what_(what), limits_(limits), chunk_(kChunkBytes) {
    if (inflateInit2(&stream_, kGzipOnly) != Z_OK)
      throw base::SystemError(concat("cannot unpack ", what_, ": zlib found no memory"));
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  std::string all(base::Progress& progress) {
    bool ended = false;
    while (!ended || next_member()) {
      progress.check_interrupted();
      ended = step();
    }
    return std::move(out_);
  }

 private:
  // One chunk of output; true at a member's end.
  bool step() {
    const auto given =
        static_cast<uInt>(std::min<std::size_t>(rest_.size(), std::numeric_limits<uInt>::max() / 2));
    // zlib's interface is older than const; it only reads.
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(rest_.data()));
    stream_.avail_in = given;
    stream_.next_out = chunk_.data();
    stream_.avail_out = static_cast<uInt>(chunk_.size());
    const int result = inflate(&stream_, Z_NO_FLUSH);
    rest_ = rest_.subspan(given - stream_.avail_in);
    const std::size_t made = chunk_.size() - stream_.avail_out;
    out_.append(reinterpret_cast<const char*>(chunk_.data()), made);
    check(result, made > 0 || given > stream_.avail_in);
    check_limits();
    return result == Z_STREAM_END;
  }

  void check(int result, bool moved) const {
    if (result == Z_STREAM_END || (result == Z_OK && moved)) return;
    if (result == Z_MEM_ERROR)
      throw base::SystemError(concat("cannot unpack ", what_, ": zlib found no memory"));
    if (result == Z_OK || result == Z_BUF_ERROR) {
      throw InvalidInput(concat(what_, ": this gzip file ends too early, after ", out_.size(),
                                " bytes of text; fetch it again (gzip -t checks one)"));
    }
    throw InvalidInput(
        concat(what_, ": this gzip file is damaged: ", stream_.msg == nullptr ? "not deflate" : stream_.msg,
               " after ", out_.size(), " bytes of text; fetch it again (gzip -t checks one)"));
  }

  void check_limits() const {
    const std::uint64_t used = std::max<std::uint64_t>(size_ - rest_.size(), 1);
    const std::uint64_t ratio = out_.size() / used;
    const bool bomb = out_.size() > limits_.ratio_from && ratio > limits_.ratio;
    if (!bomb && out_.size() <= limits_.bytes) return;
    throw InvalidInput(concat(what_, ": this gzip file unpacks to ", bomb ? "" : "more than ",
                              out_.size() >> 20, " MiB", bomb ? " so far" : "", ", ", ratio,
                              " times its size; the limits are ", limits_.bytes >> 20, " MiB, and ",
                              limits_.ratio, " times from ", limits_.ratio_from >> 20,
                              " MiB on. Take a part: gzip -dc FILE | head -c 1G > text.txt"));
  }

  // Whether another member follows the one that has ended.
  bool next_member() {
    if (std::ranges::all_of(rest_, [](std::byte byte) { return byte == std::byte{0}; })) return false;
    if (!is_gzip(rest_)) {
      throw InvalidInput(concat(what_, ": ", rest_.size(),
                                " bytes that are not gzip follow this gzip file's end, at byte ",
                                size_ - rest_.size(), "; fetch it again, or keep what gzip -dc gives of it"));
    }
    inflateReset(&stream_);
    return true;
  }

  std::span<const std::byte> rest_;
  std::size_t size_;
  const std::string& what_;
  const InflateLimits& limits_;
  std::vector<Bytef> chunk_;
  z_stream stream_{};
  std::string out_;
};

}  // namespace

bool is_gzip(std::span<const std::byte> bytes) {
  return bytes.size() >= 2 && bytes[0] == std::byte{0x1f} && bytes[1] == std::byte{0x8b};
}

std::string inflate_gzip(std::span<const std::byte> bytes, const std::string& what, base::Progress& progress,
                         const InflateLimits& limits) {
  return Inflater(bytes, what, limits).all(progress);
}

}  // namespace kvcal::calib
