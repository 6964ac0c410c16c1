#include "base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdint>
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

[[noreturn]] void throw_system(std::string_view what, const std::filesystem::path& path, int error_number) {
  std::string remedy;
  if (error_number == ENOSPC || error_number == EDQUOT)
    remedy = "; free some space and run the same command again";
  throw SystemError(concat("cannot ", what, " ", path.string(), ": ", errno_text(error_number), remedy));
}

void sync_folder(const std::filesystem::path& folder) {
  const Descriptor descriptor(
      ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some file systems cannot sync a folder; the rename itself has been done.
  if (descriptor.get() >= 0) (void)::fsync(descriptor.get());
}

void write_all(int descriptor, std::span<const std::byte> bytes, const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_system("write", path, errno);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.get() < 0) throw_system("open", path, errno);
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) throw_system("read the size of", path, errno);
  if (!S_ISREG(status.st_mode))
    throw SystemError(concat("cannot read ", path.string(), ": not a regular file"));
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
  if (address == MAP_FAILED) {
    size_ = 0;
    throw_system("map", path, errno);
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

std::filesystem::path temporary_name(const std::filesystem::path& path) {
  return path.parent_path() / concat(".", path.filename().string(), ".", ::getpid(), ".tmp");
}

void remove_temporaries(const std::filesystem::path& folder, const std::string& filename) {
  const std::string prefix = filename.empty() ? "." : "." + filename + ".";
  std::error_code ignored;
  for (const auto& item : std::filesystem::directory_iterator(folder, ignored)) {
    std::string name = item.path().filename().string();
    if (!name.starts_with(prefix) || !name.ends_with(".tmp")) continue;
    name.resize(name.size() - 4);
    const std::string_view number = std::string_view(name).substr(name.rfind('.') + 1);
    pid_t process = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), process);
    const bool ours = error == std::errc() && end == number.data() + number.size() && process > 0;
    if (ours && ::kill(process, 0) != 0 && errno == ESRCH) std::filesystem::remove(item.path(), ignored);
  }
}

void publish_file(const std::filesystem::path& temporary, const std::filesystem::path& path) {
  const auto fail = [&](std::string_view what) {
    const int error_number = errno;
    ::unlink(temporary.c_str());
    throw_system(what, path, error_number);
  };
  {
    const Descriptor descriptor(::open(temporary.c_str(), O_RDWR | O_CLOEXEC));
    if (descriptor.get() < 0) fail("open");
    if (::fsync(descriptor.get()) != 0) fail("sync");
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail("write");
  sync_folder(path.parent_path());
}

void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  const std::filesystem::path temporary = temporary_name(path);
  {
    const Descriptor descriptor(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    if (descriptor.get() < 0) throw_system("write", path, errno);
    try {
      write_all(descriptor.get(), bytes, path);
    } catch (...) {
      ::unlink(temporary.c_str());
      throw;
    }
  }
  publish_file(temporary, path);
}

void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  write_file_atomically(path, std::as_bytes(std::span(text.data(), text.size())));
}

FileLock::FileLock(const std::filesystem::path& path)
    : descriptor_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) throw_system("open the lock", path, errno);
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    const int error_number = errno;
    ::close(descriptor_);
    descriptor_ = -1;
    if (error_number == EWOULDBLOCK) {
      throw SystemError(concat(path.parent_path().string(),
                               " is in use by another run; wait for it to end, or choose another folder"));
    }
    throw_system("lock", path, error_number);
  }
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace kvcal::base
