#include "base/new_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

#include "base/error.h"
#include "base/file.h"
#include "base/temporary_name.h"

namespace kvcal::base {
namespace {

namespace fs = std::filesystem;

}  // namespace

NewFile::NewFile(const fs::path& path) : path_(path) {
  // Between making a file and locking it, another run may take it for a dead one's and remove it: try again.
  for (;;) {
    temporary_ = temporary_path(path);
    descriptor_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno == EEXIST) continue;
    if (descriptor_ < 0) throw_system_error("write", path_, errno);
    // A file system without locks has nobody who could remove it either.
    const bool taken = ::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (!taken && is_file_of(descriptor_, temporary_)) return;
    ::unlink(temporary_.c_str());
    ::close(descriptor_);
  }
}

NewFile::~NewFile() {
  if (descriptor_ < 0) return;
  ::unlink(temporary_.c_str());
  ::close(descriptor_);
}

void NewFile::write(std::span<const std::byte> bytes) {
  // One write() takes at most 2 GiB.
  constexpr std::size_t kLargestWrite = std::size_t{1} << 30;
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), std::min(bytes.size(), kLargestWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_system_error("write", path_, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void NewFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text.data(), text.size())));
}

void NewFile::write_at(std::int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw_system_error("write", path_, written == 0 ? ENOSPC : errno);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += written;
  }
}

void NewFile::publish() {
  if (::fsync(descriptor_) != 0) throw_system_error("sync", path_, errno);
  // Renamed while still locked: at no moment does it lie there unlocked under its temporary name.
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) throw_system_error("write", path_, errno);
  // Some file systems (NFS) may report only here what fsync() did not.
  const int closed = ::close(descriptor_);
  const int error_number = errno;
  descriptor_ = -1;
  if (closed != 0) throw_system_error("write", path_, error_number);
  sync_folder(path_.parent_path());
}

void write_file_atomically(const fs::path& path, std::span<const std::byte> bytes) {
  NewFile file(path);
  file.write(bytes);
  file.publish();
}

void write_file_atomically(const fs::path& path, std::string_view text) {
  write_file_atomically(path, std::as_bytes(std::span(text.data(), text.size())));
}

std::string_view name_of_unfinished(std::string_view name) {
  constexpr std::size_t kTail = 1 + kTemporaryDigits + kTemporaryEnding.size();
  if (!name.starts_with('.') || !name.ends_with(kTemporaryEnding) || name.size() < 2 + kTail) return {};
  const std::string_view tail = name.substr(name.size() - kTail);
  const std::string_view digits = tail.substr(1, kTemporaryDigits);
  if (tail[0] != '.' || digits.find_first_not_of("0123456789abcdef") != std::string_view::npos) return {};
  return name.substr(1, name.size() - 1 - kTail);
}

void remove_unfinished(const fs::path& folder, std::string_view filename) {
  std::error_code ignored;
  for (const auto& item : fs::directory_iterator(folder, ignored)) {
    const std::string name = item.path().filename().string();
    const std::string_view wanted = name_of_unfinished(name);
    if (wanted.empty() || (!filename.empty() && wanted != filename)) continue;
    const int descriptor = ::open(item.path().c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0) continue;
    const bool dead = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0;
    // Locked, and still under that name: not renamed meanwhile by a run that has just finished it.
    if (dead && is_file_of(descriptor, item.path())) ::unlink(item.path().c_str());
    ::close(descriptor);
  }
}

}  // namespace kvcal::base
