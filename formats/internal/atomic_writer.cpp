#include "formats/internal/atomic_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "base/error.h"
#include "base/file.h"

namespace kvcal::formats {

AtomicWriter::AtomicWriter(const std::filesystem::path& path)
    : path_(path),
      temporary_(base::temporary_name(path)),
      descriptor_(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) fail(errno);
}

AtomicWriter::~AtomicWriter() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicWriter::fail(int error_number) const {
  const bool full = error_number == ENOSPC || error_number == EDQUOT;
  throw base::SystemError(base::concat("cannot write ", path_.string(), ": ", base::errno_text(error_number),
                                       full ? "; free some space and run the same command again" : ""));
}

void AtomicWriter::write(std::span<const std::byte> bytes) {
  // One write() takes at most 2 GiB.
  constexpr std::size_t kLargestWrite = std::size_t{1} << 30;
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), std::min(bytes.size(), kLargestWrite));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail(errno);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void AtomicWriter::write(std::string_view text) {
  write(std::as_bytes(std::span(text.data(), text.size())));
}

void AtomicWriter::publish() {
  // Some file systems (NFS) report a full disk only here.
  const int closed = ::close(descriptor_);
  const int error_number = errno;
  descriptor_ = -1;
  if (closed != 0) {
    ::unlink(temporary_.c_str());
    fail(error_number);
  }
  base::publish_file(temporary_, path_);
}

}  // namespace kvcal::formats
