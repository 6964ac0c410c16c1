#include "base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <thread>
#include <utility>

#include "base/error.h"

namespace kvcal::base {
namespace {

/// A descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return value_; }

 private:
  int value_;
};

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.get() < 0) throw_system_error("open", path, errno);
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) throw_system_error("read the size of", path, errno);
  if (!S_ISREG(status.st_mode))
    throw SystemError(concat("cannot read ", path.string(), ": not a regular file"));
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
  if (address == MAP_FAILED) {
    size_ = 0;
    throw_system_error("map", path, errno);
  }
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

namespace {

void advise(std::span<const std::byte> part, int advice, bool inner) {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  auto begin = reinterpret_cast<std::uintptr_t>(part.data());
  auto end = begin + part.size();
  // Pages shared with a neighbouring tensor are read ahead but never dropped.
  begin = inner ? (begin + page - 1) / page * page : begin / page * page;
  end = inner ? end / page * page : (end + page - 1) / page * page;
  if (begin < end) (void)::madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

void MappedFile::advise_will_need(std::span<const std::byte> part) const {
  advise(part, MADV_WILLNEED, false);
}

void MappedFile::advise_dont_need(std::span<const std::byte> part) const {
  advise(part, MADV_DONTNEED, true);
}

std::string read_text_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void throw_system_error(std::string_view what, const std::filesystem::path& path, int error_number) {
  const bool full = error_number == ENOSPC || error_number == EDQUOT;
  throw SystemError(concat("cannot ", what, " ", path.string(), ": ", errno_text(error_number),
                           full ? "; free some space and run the same command again" : ""));
}

void read_whole_at(int descriptor, std::int64_t offset, std::span<std::byte> bytes,
                   const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t got = ::pread(descriptor, bytes.data(), bytes.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_system_error("read", path, errno);
    if (got == 0) throw SystemError(concat("cannot read ", path.string(), ": it ends too early"));
    bytes = bytes.subspan(static_cast<std::size_t>(got));
    offset += got;
  }
}

std::vector<std::byte> read_file(const std::filesystem::path& path, std::uint64_t limit) {
  const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.get() < 0) throw_system_error("open", path, errno);
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) throw_system_error("read the size of", path, errno);
  if (!S_ISREG(status.st_mode))
    throw SystemError(concat("cannot read ", path.string(), ": not a regular file"));
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size > limit) {
    throw InvalidInput(
        concat(path.string(), ": ", size, " bytes are too many; expected ", limit, " at most"));
  }
  std::vector<std::byte> bytes(size);
  read_whole_at(descriptor.get(), 0, bytes, path);
  return bytes;
}

bool is_file_of(int descriptor, const std::filesystem::path& path) {
  struct stat opened {
  }, named{};
  return ::fstat(descriptor, &opened) == 0 && ::stat(path.c_str(), &named) == 0 &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

std::filesystem::path behind_links(const std::filesystem::path& path) {
  constexpr int kMaxLinks = 40;  // as many as Linux follows
  std::filesystem::path target = path;
  std::error_code error;
  for (int links = 0; std::filesystem::is_symlink(std::filesystem::symlink_status(target, error)); ++links) {
    if (links == kMaxLinks) throw_system_error("follow the link", path, ELOOP);
    const std::filesystem::path next = std::filesystem::read_symlink(target, error);
    if (error) throw_system_error("follow the link", path, error.value());
    target = target.parent_path() / next;
  }
  return target;
}

bool lies_in(const std::filesystem::path& path, const std::filesystem::path& folder) {
  const auto resolved = [](const std::filesystem::path& name) {
    std::error_code error;
    const auto whole =
        std::filesystem::weakly_canonical(std::filesystem::absolute(behind_links(name), error), error);
    // A trailing slash would count as an empty last part.
    return whole.has_filename() ? whole : whole.parent_path();
  };
  const std::filesystem::path inner = resolved(path);
  const std::filesystem::path outer = resolved(folder);
  const auto [end, rest] = std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
  return end == outer.end();
}

namespace {

[[noreturn]] void throw_in_use(const std::filesystem::path& lock) {
  throw SystemError(concat(lock.parent_path().string(),
                           " is in use by another run; wait for it to end, or choose another folder"));
}

}  // namespace

void FileLock::check_free(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  const bool held = ::flock(descriptor, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(descriptor);
  if (held) throw_in_use(path);
}

FileLock::FileLock(const std::filesystem::path& path, std::string_view content) {
  // Who held the lock may have unlinked the file between our opening and our locking it, and who only looks
  // whether it is free (check_free) holds it for a moment: try again.
  constexpr int kTries = 100;
  constexpr int kTriesWhileHeld = 5;
  for (int tries = 1;; ++tries) {
    descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0) throw_system_error("open the lock", path, errno);
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) {
      if (is_file_of(descriptor_, path)) break;
      ::close(descriptor_);
      descriptor_ = -1;
      if (tries < kTries) continue;
      throw SystemError(concat("cannot lock ", path.string(), ": the file changes all the time"));
    }
    const int error_number = errno;
    struct stat status {};
    // A file system without locks: what was made for nothing goes.
    if (error_number != EWOULDBLOCK && ::fstat(descriptor_, &status) == 0 && status.st_size == 0)
      ::unlink(path.c_str());
    ::close(descriptor_);
    descriptor_ = -1;
    if (error_number != EWOULDBLOCK) throw_system_error("lock", path, error_number);
    if (tries >= kTriesWhileHeld) throw_in_use(path);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  struct stat status {};
  if (::fstat(descriptor_, &status) == 0 && status.st_size == 0 && !content.empty() &&
      ::write(descriptor_, content.data(), content.size()) != static_cast<ssize_t>(content.size())) {
    const int error_number = errno;
    ::unlink(path.c_str());
    ::close(descriptor_);
    descriptor_ = -1;
    throw_system_error("write", path, error_number);
  }
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace kvcal::base
