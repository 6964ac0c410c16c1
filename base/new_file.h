// base/new_file.h: a file that appears under its name whole or not at all.
//
// While it is made it lies beside its name as .NAME.<16 hexadecimal digits>.tmp, locked (flock). The kernel
// drops the lock with the process, on whichever host or in whichever container that lives: so what a killed
// run left can be told from what a living one is writing by the lock, and by nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace kvcal::base {

/// write() or write_at() as often as needed, then publish() once; destroyed without it, nothing is left
/// behind. Every error is a SystemError that names the file it was to be, and what to do on a full disk.
class NewFile {
 public:
  /// Makes an empty file under the temporary name.
  explicit NewFile(const std::filesystem::path& path);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  /// Appends.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void write_at(std::int64_t offset, std::span<const std::byte> bytes);
  /// Syncs, renames, and syncs the folder: readers see the old file or the new one, whole.
  void publish();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

/// Writes a whole NewFile of these bytes.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// The name that `name` was to have where it is that of an unfinished NewFile; else empty.
[[nodiscard]] std::string_view name_of_unfinished(std::string_view name);

/// Removes unfinished NewFiles of `filename` in `folder` (of any file where it is empty) that no living
/// process is writing. What cannot be locked is left alone.
void remove_unfinished(const std::filesystem::path& folder, std::string_view filename = {});

}  // namespace kvcal::base
