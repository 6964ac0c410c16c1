// tests/faults/fail_nth.cpp: a library for LD_PRELOAD that lets the nth call of a kind fail, as on a disk that is full or dying.
//
//   KVCAL_FAULT=CALL:N:ERROR[+]    the Nth call (from 1, over all threads) of this kind fails with ERROR (ENOSPC, EIO, ...);
//                                  with + that one and all later ones
//   KVCAL_FAULT=short_write:N[+]   the Nth write writes half of its bytes
//   KVCAL_FAULT_UNDER=DIR          only calls on DIR and what lies below it count; wanted
//   KVCAL_FAULT_COUNT=FILE         "fault CALL PATH" for each fault at once, "CALL N" for each kind when the program ends; appended
//
// Kinds: open (open, fopen, mkstemp, opendir), read, write, sync, truncate, rename, link, unlink, mkdir, map (of a file), lock, close.
// A close that fails has closed the file, as on Linux. What libc calls inside itself is not seen: fwrite's writes, for one; so
// everything that opens one is a function of its own here. libstdc++'s streams and std::filesystem, HDF5 and libtorch call what is.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

namespace {

enum Kind {
  kOpen,
  kRead,
  kWrite,
  kSync,
  kTruncate,
  kRename,
  kLink,
  kUnlink,
  kMkdir,
  kMap,
  kLock,
  kClose,
  kKinds
};
constexpr std::array<std::string_view, kKinds> kNames = {
    "open", "read", "write", "sync", "truncate", "rename", "link", "unlink", "mkdir", "map", "lock", "close"};

struct ErrorName {
  std::string_view name;
  int number;
};
constexpr ErrorName kErrors[] = {
    {"ENOSPC", ENOSPC}, {"EIO", EIO},       {"EMFILE", EMFILE}, {"EDQUOT", EDQUOT}, {"EROFS", EROFS},
    {"EACCES", EACCES}, {"ENOMEM", ENOMEM}, {"ENOLCK", ENOLCK}, {"EINTR", EINTR},   {"EXDEV", EXDEV}};

struct Settings {
  int kind = kKinds;  ///< kKinds: none fails
  long nth = 0;
  bool onwards = false;
  bool half = false;  ///< a short write
  int error_number = 0;
  std::string under;  ///< without links; empty: nothing counts
  std::string count_file;
};

[[noreturn]] void refuse(const char* what) {
  std::fprintf(stderr, "fail_nth: cannot understand %s\n", what);
  ::_exit(99);
}

Settings parse() {
  Settings settings;
  char resolved[PATH_MAX];
  if (const char* under = std::getenv("KVCAL_FAULT_UNDER"); under != nullptr) {
    if (::realpath(under, resolved) == nullptr) refuse("KVCAL_FAULT_UNDER");
    settings.under = resolved;
  }
  if (const char* file = std::getenv("KVCAL_FAULT_COUNT"); file != nullptr) settings.count_file = file;
  const char* fault = std::getenv("KVCAL_FAULT");
  if (fault == nullptr || *fault == '\0') return settings;
  if (settings.under.empty()) refuse("KVCAL_FAULT without KVCAL_FAULT_UNDER");
  std::string_view text(fault);
  if (text.ends_with('+')) settings.onwards = true, text.remove_suffix(1);
  const std::size_t first = text.find(':');
  if (first == std::string_view::npos) refuse("KVCAL_FAULT");
  const std::string_view name = text.substr(0, first);
  settings.nth = std::strtol(text.data() + first + 1, nullptr, 10);
  if (settings.nth < 1) refuse("KVCAL_FAULT's number");
  if (name == "short_write") {
    settings.kind = kWrite, settings.half = true;
    return settings;
  }
  for (int kind = 0; kind < kKinds; ++kind)
    if (kNames[static_cast<std::size_t>(kind)] == name) settings.kind = kind;
  const std::string_view error = text.substr(text.rfind(':') + 1);
  for (const ErrorName& one : kErrors)
    if (one.name == error) settings.error_number = one.number;
  if (settings.kind == kKinds || settings.error_number == 0) refuse("KVCAL_FAULT's call or error");
  return settings;
}

// Never destroyed: files are closed to the very end.
const Settings& settings() {
  static const Settings* const one = new Settings(parse());
  return *one;
}

std::array<std::atomic<long>, kKinds> counts;

// Past our own functions: nothing of this is counted.
void note(const std::string& line) {
  const int file = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, settings().count_file.c_str(),
                                              O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (file < 0) return;
  (void)!::syscall(SYS_write, file, line.data(), line.size());
  ::syscall(SYS_close, file);
}

[[gnu::destructor]] void note_counts() {
  if (settings().count_file.empty()) return;
  std::string text;
  for (std::size_t kind = 0; kind < kKinds; ++kind)
    text += std::string(kNames[kind]) + " " + std::to_string(counts[kind].load()) + "\n";
  note(text);
}

bool counted(std::string_view path) {
  const std::string& under = settings().under;
  return path.starts_with(under) && (path.size() == under.size() || path[under.size()] == '/');
}

std::string path_of(int descriptor) {
  char name[64], path[PATH_MAX];
  std::snprintf(name, sizeof(name), "/proc/self/fd/%d", descriptor);
  const ssize_t length = ::readlink(name, path, sizeof(path));
  return length > 0 ? std::string(path, static_cast<std::size_t>(length)) : std::string();
}

// The folder without links, the last name as it is: it need not exist.
std::string path_of(int folder, const char* name) {
  if (name == nullptr) return {};
  std::string path(name);
  if (!path.starts_with('/') && folder != AT_FDCWD) path = path_of(folder) + "/" + path;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  const std::size_t slash = path.rfind('/');
  const std::string parent = slash == std::string::npos ? "." : path.substr(0, slash == 0 ? 1 : slash);
  char resolved[PATH_MAX];
  if (::realpath(parent.c_str(), resolved) == nullptr) return {};
  return std::string(resolved) + "/" + path.substr(slash == std::string::npos ? 0 : slash + 1);
}

enum class Verdict { kGoOn, kFail, kHalf };

// Counts a call and says what becomes of it; errno is set where it is to fail, and untouched otherwise.
Verdict judge(Kind kind, const std::string& path) {
  if (!counted(path)) return Verdict::kGoOn;
  const long number = ++counts[kind];
  const Settings& s = settings();
  if (s.kind != kind || number < s.nth || (number > s.nth && !s.onwards)) return Verdict::kGoOn;
  if (!s.count_file.empty()) note("fault " + std::string(kNames[kind]) + " " + path + "\n");
  if (s.half) return Verdict::kHalf;
  errno = s.error_number;
  return Verdict::kFail;
}

// Both only where anything counts: else the program runs as without us.
bool idle() {
  return settings().under.empty();
}

Verdict on_file(Kind kind, int descriptor) {
  if (idle()) return Verdict::kGoOn;
  const int before = errno;
  const std::string path = path_of(descriptor);
  errno = before;
  return judge(kind, path);
}

bool fails(Kind kind, int descriptor) {
  return on_file(kind, descriptor) == Verdict::kFail;
}

bool fails(Kind kind, int folder, const char* name) {
  if (idle()) return false;
  const int before = errno;
  const std::string path = path_of(folder, name);
  errno = before;
  return judge(kind, path) == Verdict::kFail;
}

template <typename Function>
Function* next(Function*, const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

std::size_t shortened(Verdict verdict, std::size_t size) {
  return verdict == Verdict::kHalf && size > 1 ? size / 2 : size;
}

}  // namespace

// The function that this one hides.
#define NEXT(name)                                                                \
  ([] {                                                                           \
    static const auto found = next(static_cast<decltype(&name)>(nullptr), #name); \
    return found;                                                                 \
  }())

extern "C" {

#define OPEN_MODE(flags, last)                          \
  mode_t mode = 0;                                      \
  if (((flags) & (O_CREAT | __O_TMPFILE)) != 0) {       \
    va_list rest;                                       \
    va_start(rest, last);                               \
    mode = static_cast<mode_t>(va_arg(rest, unsigned)); \
    va_end(rest);                                       \
  }

int open(const char* name, int flags, ...) {
  OPEN_MODE(flags, flags)
  return fails(kOpen, AT_FDCWD, name) ? -1 : NEXT(open)(name, flags, mode);
}
int open64(const char* name, int flags, ...) {
  OPEN_MODE(flags, flags)
  return fails(kOpen, AT_FDCWD, name) ? -1 : NEXT(open64)(name, flags, mode);
}
int openat(int folder, const char* name, int flags, ...) {
  OPEN_MODE(flags, flags)
  return fails(kOpen, folder, name) ? -1 : NEXT(openat)(folder, name, flags, mode);
}
int openat64(int folder, const char* name, int flags, ...) {
  OPEN_MODE(flags, flags)
  return fails(kOpen, folder, name) ? -1 : NEXT(openat64)(folder, name, flags, mode);
}
int creat(const char* name, mode_t mode) {
  return open(name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char* name, mode_t mode) {
  return open64(name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
// What programs built with _FORTIFY_SOURCE call.
int __open_2(const char* name, int flags) {
  return open(name, flags);
}
int __open64_2(const char* name, int flags) {
  return open64(name, flags);
}
int mkostemp(char* name, int flags) {
  return fails(kOpen, AT_FDCWD, name) ? -1 : NEXT(mkostemp)(name, flags);
}
int mkostemp64(char* name, int flags) {
  return fails(kOpen, AT_FDCWD, name) ? -1 : NEXT(mkostemp64)(name, flags);
}
int mkstemp(char* name) {
  return mkostemp(name, 0);
}
FILE* fopen(const char* name, const char* mode) {
  return fails(kOpen, AT_FDCWD, name) ? nullptr : NEXT(fopen)(name, mode);
}
FILE* fopen64(const char* name, const char* mode) {
  return fails(kOpen, AT_FDCWD, name) ? nullptr : NEXT(fopen64)(name, mode);
}
DIR* opendir(const char* name) {
  return fails(kOpen, AT_FDCWD, name) ? nullptr : NEXT(opendir)(name);
}

ssize_t read(int file, void* to, size_t size) {
  return fails(kRead, file) ? -1 : NEXT(read)(file, to, size);
}
ssize_t pread(int file, void* to, size_t size, off_t at) {
  return fails(kRead, file) ? -1 : NEXT(pread)(file, to, size, at);
}
ssize_t pread64(int file, void* to, size_t size, off64_t at) {
  return fails(kRead, file) ? -1 : NEXT(pread64)(file, to, size, at);
}
ssize_t readv(int file, const iovec* parts, int count) {
  return fails(kRead, file) ? -1 : NEXT(readv)(file, parts, count);
}

ssize_t write(int file, const void* from, size_t size) {
  const Verdict verdict = on_file(kWrite, file);
  return verdict == Verdict::kFail ? -1 : NEXT(write)(file, from, shortened(verdict, size));
}
ssize_t pwrite(int file, const void* from, size_t size, off_t at) {
  const Verdict verdict = on_file(kWrite, file);
  return verdict == Verdict::kFail ? -1 : NEXT(pwrite)(file, from, shortened(verdict, size), at);
}
ssize_t pwrite64(int file, const void* from, size_t size, off64_t at) {
  const Verdict verdict = on_file(kWrite, file);
  return verdict == Verdict::kFail ? -1 : NEXT(pwrite64)(file, from, shortened(verdict, size), at);
}
ssize_t writev(int file, const iovec* parts, int count) {
  const Verdict verdict = on_file(kWrite, file);
  if (verdict == Verdict::kFail) return -1;
  if (verdict == Verdict::kHalf && count > 0)
    return NEXT(write)(file, parts[0].iov_base, shortened(verdict, parts[0].iov_len));
  return NEXT(writev)(file, parts, count);
}
ssize_t sendfile(int to, int from, off_t* at, size_t size) {
  const Verdict verdict = on_file(kWrite, to);
  return verdict == Verdict::kFail ? -1 : NEXT(sendfile)(to, from, at, shortened(verdict, size));
}
ssize_t sendfile64(int to, int from, off64_t* at, size_t size) {
  const Verdict verdict = on_file(kWrite, to);
  return verdict == Verdict::kFail ? -1 : NEXT(sendfile64)(to, from, at, shortened(verdict, size));
}
ssize_t copy_file_range(int from, off64_t* from_at, int to, off64_t* to_at, size_t size, unsigned flags) {
  const Verdict verdict = on_file(kWrite, to);
  return verdict == Verdict::kFail
             ? -1
             : NEXT(copy_file_range)(from, from_at, to, to_at, shortened(verdict, size), flags);
}

int fsync(int file) {
  return fails(kSync, file) ? -1 : NEXT(fsync)(file);
}
int fdatasync(int file) {
  return fails(kSync, file) ? -1 : NEXT(fdatasync)(file);
}

int ftruncate(int file, off_t size) noexcept {
  return fails(kTruncate, file) ? -1 : NEXT(ftruncate)(file, size);
}
int ftruncate64(int file, off64_t size) noexcept {
  return fails(kTruncate, file) ? -1 : NEXT(ftruncate64)(file, size);
}
int fallocate(int file, int mode, off_t at, off_t size) {
  return fails(kTruncate, file) ? -1 : NEXT(fallocate)(file, mode, at, size);
}
// Returns the error and leaves errno alone.
int posix_fallocate(int file, off_t at, off_t size) {
  return fails(kTruncate, file) ? settings().error_number : NEXT(posix_fallocate)(file, at, size);
}

int rename(const char* from, const char* to) noexcept {
  return fails(kRename, AT_FDCWD, to) ? -1 : NEXT(rename)(from, to);
}
int renameat(int from_folder, const char* from, int to_folder, const char* to) noexcept {
  return fails(kRename, to_folder, to) ? -1 : NEXT(renameat)(from_folder, from, to_folder, to);
}
int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) noexcept {
  return fails(kRename, to_folder, to) ? -1 : NEXT(renameat2)(from_folder, from, to_folder, to, flags);
}

int link(const char* from, const char* to) noexcept {
  return fails(kLink, AT_FDCWD, to) ? -1 : NEXT(link)(from, to);
}
int symlink(const char* target, const char* name) noexcept {
  return fails(kLink, AT_FDCWD, name) ? -1 : NEXT(symlink)(target, name);
}

int unlink(const char* name) noexcept {
  return fails(kUnlink, AT_FDCWD, name) ? -1 : NEXT(unlink)(name);
}
int unlinkat(int folder, const char* name, int flags) noexcept {
  return fails(kUnlink, folder, name) ? -1 : NEXT(unlinkat)(folder, name, flags);
}
int rmdir(const char* name) noexcept {
  return fails(kUnlink, AT_FDCWD, name) ? -1 : NEXT(rmdir)(name);
}
int remove(const char* name) noexcept {
  return fails(kUnlink, AT_FDCWD, name) ? -1 : NEXT(remove)(name);
}

int mkdir(const char* name, mode_t mode) noexcept {
  return fails(kMkdir, AT_FDCWD, name) ? -1 : NEXT(mkdir)(name, mode);
}

void* mmap(void* address, size_t size, int protection, int flags, int file, off_t at) noexcept {
  return file >= 0 && fails(kMap, file) ? MAP_FAILED : NEXT(mmap)(address, size, protection, flags, file, at);
}
void* mmap64(void* address, size_t size, int protection, int flags, int file, off64_t at) noexcept {
  return file >= 0 && fails(kMap, file) ? MAP_FAILED
                                        : NEXT(mmap64)(address, size, protection, flags, file, at);
}

int flock(int file, int operation) noexcept {
  return fails(kLock, file) ? -1 : NEXT(flock)(file, operation);
}

int close(int file) {
  if (!fails(kClose, file)) return NEXT(close)(file);
  const int error_number = errno;
  (void)NEXT(close)(file);
  errno = error_number;
  return -1;
}

}  // extern "C"
