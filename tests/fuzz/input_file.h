// fuzz/input_file.h: bytes as a file that a reader can open, in memory alone.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <set>
#include <span>
#include <string>

#include "base/error.h"

namespace kvcal::fuzz {

/// A file without a name (memfd), there while this object lives. For readers of one file: an input costs few system calls.
class InputFile {
 public:
  explicit InputFile(std::span<const std::byte> bytes) : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    if (descriptor_ < 0) throw base::Error("memfd_create: " + base::errno_text(errno));
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0) {
        const int number = errno;
        ::close(descriptor_);
        throw base::Error("cannot write a memfd: " + base::errno_text(number));
      }
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }
  ~InputFile() { ::close(descriptor_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  [[nodiscard]] std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

/// A folder in /dev/shm, for readers of a whole folder. Its destructor removes the files that it was asked for, and the folder; one that a
/// killed fuzzer left is taken over by the next of the same process number.
class InputFolder {
 public:
  InputFolder() : path_("/dev/shm/kvcal-fuzz-" + std::to_string(::getpid())) {
    std::filesystem::create_directories(path_);
  }
  ~InputFolder() {
    std::error_code ignored;
    for (const std::string& name : names_) std::filesystem::remove(path_ / name, ignored);
    std::filesystem::remove(path_, ignored);
  }
  InputFolder(const InputFolder&) = delete;
  InputFolder& operator=(const InputFolder&) = delete;

  /// The path of a file that another writes and the destructor removes.
  [[nodiscard]] std::filesystem::path file(const std::string& name) {
    names_.insert(name);
    return path_ / name;
  }

  /// Makes the file, or replaces it.
  void write(const std::string& name, std::span<const std::byte> bytes) {
    std::ofstream out(file(name), std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!out.flush()) throw base::Error("cannot write " + (path_ / name).string());
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::set<std::string> names_;
};

}  // namespace kvcal::fuzz
