// base/file.h: files that are there: a read-only memory map, whole reads, an exclusive lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvcal::base {

/// A file mapped read-only for as long as this object lives. An empty file maps to an empty span.
class MappedFile {
 public:
  MappedFile() = default;
  /// Throws SystemError naming the file and the system's reason.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// Tells the kernel that a part will be read soon, or not again (its pages may then leave memory).
  void advise_will_need(std::span<const std::byte> part) const;
  void advise_dont_need(std::span<const std::byte> part) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// The whole file as text. Throws SystemError.
[[nodiscard]] std::string read_text_file(const std::filesystem::path& path);

/// The whole file as bytes, read and not mapped, so that a disk that fails is an error and not a signal.
/// Throws SystemError; InvalidInput where it is larger than `limit`.
[[nodiscard]] std::vector<std::byte> read_file(const std::filesystem::path& path, std::uint64_t limit);

/// Fills `bytes` from an open file. Throws SystemError, also where the file ends before.
void read_whole_at(int descriptor, std::int64_t offset, std::span<std::byte> bytes,
                   const std::filesystem::path& path);

/// Whether `path` names the file that is open as `descriptor`.
[[nodiscard]] bool is_file_of(int descriptor, const std::filesystem::path& path);

/// `path`, or what it points to where it is a symbolic link, be it a dangling one: where a result goes that a user
/// names so (base/new_file.h replaces a link). Throws SystemError where the links lead nowhere, as in a circle.
[[nodiscard]] std::filesystem::path behind_links(const std::filesystem::path& path);

/// Whether `path`, links resolved as far as it exists, is `folder` or lies below it.
[[nodiscard]] bool lies_in(const std::filesystem::path& path, const std::filesystem::path& folder);

/// Throws SystemError "cannot WHAT PATH: REASON", with what to do where the disk is full.
[[noreturn]] void throw_system_error(std::string_view what, const std::filesystem::path& path,
                                     int error_number);

/// An exclusive advisory lock on a file (made where missing), held while this object lives; the kernel drops
/// it with the process, so a killed run leaves no stale lock. The file may be unlinked by who holds the lock.
class FileLock {
 public:
  /// Throws SystemError where another process holds it, saying so.
  /// A file that had to be made is given `content`.
  explicit FileLock(const std::filesystem::path& path, std::string_view content = {});
  /// Throws as the constructor does where another process holds the lock. Makes nothing and keeps nothing.
  static void check_free(const std::filesystem::path& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace kvcal::base
