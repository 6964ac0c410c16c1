#include "base/new_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/temporary_name.h"

namespace kvcal::base {
namespace {

namespace fs = std::filesystem;

/// 0 or errno.
int sync_path(const fs::path& path, int flags) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
  if (descriptor < 0) return errno;
  const int error_number = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  return error_number;
}

[[noreturn]] void throw_exists(const fs::path& path) {
  throw SystemError(concat("cannot make the folder ", path.string(),
                           ": something of that name exists; remove it or choose another name"));
}

/// Renames `from` to `to` where `to` does not exist. 0 or errno.
int rename_to_new(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return 0;
  // Not known to this kernel or file system: rename() still refuses all but an empty folder.
  if (errno != EINVAL && errno != ENOSYS) return errno;
  return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

}  // namespace

NewFolder::NewFolder(const fs::path& path) : path_(path.has_filename() ? path : path.parent_path()) {
  std::error_code error;
  if (fs::exists(fs::symlink_status(path_, error))) throw_exists(path_);
  int made = -1;
  do {
    temporary_ = temporary_path(path_);
    made = ::mkdir(temporary_.c_str(), 0777);
  } while (made != 0 && errno == EEXIST);
  if (made != 0) throw_system_error("make the folder", path_, errno);
}

NewFolder::~NewFolder() {
  if (temporary_.empty()) return;
  for (const std::string& name : names_) ::unlink((temporary_ / name).c_str());
  ::rmdir(temporary_.c_str());
}

fs::path NewFolder::add(std::string_view name) {
  if (name.empty() || name == "." || name == ".." ||
      name.find_first_of(std::string_view("/\0", 2)) != std::string_view::npos) {
    throw SystemError(
        concat("cannot write into the folder ", path_.string(), ": not the name of a file: '", name, "'"));
  }
  names_.emplace(name);
  return temporary_ / name;
}

void NewFolder::add_link(std::string_view name, const fs::path& target) {
  if (::symlink(target.c_str(), add(name).c_str()) != 0)
    throw_system_error(concat("link ", name, " into the folder"), path_, errno);
}

void NewFolder::add_copy(std::string_view name, const fs::path& source) {
  std::error_code error;
  fs::copy_file(source, add(name), error);
  if (error) throw_system_error(concat("copy ", source.string(), " into the folder"), path_, error.value());
}

void NewFolder::sync_files() const {
  for (const std::string& name : names_) {
    struct stat status {};
    const fs::path file = temporary_ / name;
    int error_number = ::lstat(file.c_str(), &status) == 0 ? 0 : errno;
    if (error_number == 0 && !S_ISLNK(status.st_mode)) error_number = sync_path(file, O_NOFOLLOW);
    if (error_number != 0) throw_system_error(concat("sync ", name, " of the folder"), path_, error_number);
  }
}

void NewFolder::publish() {
  sync_files();
  sync_folder(temporary_);
  const int error_number = rename_to_new(temporary_, path_);
  if (error_number == EEXIST || error_number == ENOTEMPTY || error_number == ENOTDIR) throw_exists(path_);
  if (error_number != 0) throw_system_error("make the folder", path_, error_number);
  temporary_.clear();
  sync_folder(path_.parent_path());
}

}  // namespace kvcal::base
