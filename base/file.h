// base/file.h: owners of files: a read-only memory map, a file that appears whole or not at all, an exclusive
// lock.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

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

/// Writes bytes to a temporary name beside `path`, syncs, then renames: readers see the old file or the new
/// one, whole. Throws SystemError (a full disk, say) and leaves nothing behind.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// Syncs `temporary` and renames it to `path`, then syncs the folder. Throws SystemError and removes
/// `temporary`.
void publish_file(const std::filesystem::path& temporary, const std::filesystem::path& path);

/// A name beside `path` for a file being made: the same folder, so that rename is atomic; unique to this
/// process.
[[nodiscard]] std::filesystem::path temporary_name(const std::filesystem::path& path);

/// Removes what processes that are no more left in `folder` under a temporary_name() of `filename` (of any
/// file where it is empty).
void remove_temporaries(const std::filesystem::path& folder, const std::string& filename = {});

/// An exclusive advisory lock on a file (made where missing), held while this object lives; the kernel drops
/// it with the process, so a killed run leaves no stale lock.
class FileLock {
 public:
  /// Throws SystemError where another process holds it, saying so.
  explicit FileLock(const std::filesystem::path& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace kvcal::base
