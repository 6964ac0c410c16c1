// base/new_folder.h: a folder that appears under its name whole or not at all.
//
// While it is made it lies beside its name as .NAME.<16 hexadecimal digits>.tmp. It is flat: files and links, no
// folders.
#pragma once

#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <string_view>

namespace kvcal::base {

/// Make each file at the path that add() gives, then publish() once; destroyed without it, what was added and the
/// folder are removed, and nothing else. Every error is a SystemError that names the folder it was to be, and what
/// to do on a full disk.
class NewFolder {
 public:
  /// Makes an empty folder under the temporary name. Throws SystemError where `path` exists, be it a dangling link.
  explicit NewFolder(const std::filesystem::path& path);
  ~NewFolder();
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  /// The folder that it is to be.
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Where the file of this name is to be made now. Throws SystemError for a name that leaves the folder.
  [[nodiscard]] std::filesystem::path add(std::string_view name);
  /// A symbolic link `name` to `target`.
  void add_link(std::string_view name, const std::filesystem::path& target);
  /// The content of `source`, links followed.
  void add_copy(std::string_view name, const std::filesystem::path& source);
  /// Syncs the files and the folder, renames it, and syncs the folder it lies in. Throws SystemError where a file
  /// that was added was not made, and where the target has come to exist.
  void publish();

 private:
  void sync_files() const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;  ///< empty once published
  std::set<std::string, std::less<>> names_;
};

}  // namespace kvcal::base
