#include "calib/activation_store.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/error.h"
#include "base/file.h"

namespace kvcal::calib {
namespace {

[[noreturn]] void throw_file_error(const char* what, const std::filesystem::path& path, int error_number) {
  const char* remedy =
      error_number == ENOSPC || error_number == EDQUOT
          ? "; free some space, or name a folder on a larger disk with --work, and run the same command again"
          : "";
  throw base::SystemError(
      base::concat("cannot ", what, " ", path.string(), ": ", base::errno_text(error_number), remedy));
}

}  // namespace

struct ActivationStore::OpenFile {
  std::filesystem::path path;
  int descriptor = -1;

  OpenFile(std::filesystem::path file, int flags)
      : path(std::move(file)), descriptor(::open(path.c_str(), flags, 0666)) {
    if (descriptor < 0) throw_file_error("open", path, errno);
  }
  ~OpenFile() {
    if (descriptor >= 0) ::close(descriptor);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
};

ActivationStore::ActivationStore(std::vector<std::int64_t> sample_tokens, std::int64_t hidden_size,
                                 at::ScalarType dtype, std::int64_t cache_bytes,
                                 std::function<std::filesystem::path(int)> file_of)
    : sample_tokens_(std::move(sample_tokens)),
      hidden_size_(hidden_size),
      dtype_(dtype),
      cache_bytes_(cache_bytes),
      file_of_(std::move(file_of)) {
  offsets_.push_back(0);
  for (std::size_t i = 0; i < sample_tokens_.size(); ++i) {
    offsets_.push_back(offsets_.back() + sample_bytes(static_cast<std::int64_t>(i)));
  }
}

ActivationStore::~ActivationStore() {
  // What was not finished is of no use to a later run.
  for (const auto& [layer, file] : writing_) ::unlink(file->path.c_str());
}

std::int64_t ActivationStore::sample_bytes(std::int64_t sample) const {
  return sample_tokens_[static_cast<std::size_t>(sample)] * hidden_size_ *
         static_cast<std::int64_t>(at::elementSize(dtype_));
}

ActivationStore::OpenFile& ActivationStore::file_for_writing(int layer) {
  auto& file = writing_[layer];
  if (file == nullptr) {
    file = std::make_unique<OpenFile>(base::temporary_name(file_of_(layer)),
                                      O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC);
  }
  return *file;
}

ActivationStore::OpenFile& ActivationStore::file_for_reading(int layer) {
  if (const auto open = writing_.find(layer); open != writing_.end()) return *open->second;
  auto& file = reading_[layer];
  if (file == nullptr) {
    file = std::make_unique<OpenFile>(file_of_(layer), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (::fstat(file->descriptor, &status) != 0) throw_file_error("read the size of", file->path, errno);
    if (status.st_size != file_bytes()) {
      throw base::InvalidInput(base::concat(file->path.string(), ": ", status.st_size, " bytes, expected ",
                                            file_bytes(), "; remove the work folder and start anew"));
    }
  }
  return *file;
}

void ActivationStore::put(int layer, std::int64_t sample, const at::Tensor& value) {
  const at::Tensor plain = value.to(dtype_).contiguous();
  OpenFile& file = file_for_writing(layer);
  const auto* bytes = static_cast<const char*>(plain.const_data_ptr());
  std::int64_t offset = offsets_[static_cast<std::size_t>(sample)];
  std::int64_t left = sample_bytes(sample);
  if (static_cast<std::int64_t>(plain.nbytes()) != left)
    throw base::Error("a hidden state of the wrong size");
  while (left > 0) {
    const ssize_t written = ::pwrite(file.descriptor, bytes, static_cast<std::size_t>(left), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw_file_error("write", file.path, written == 0 ? ENOSPC : errno);
    bytes += written;
    offset += written;
    left -= written;
  }
  remember(layer, sample, plain);
}

at::Tensor ActivationStore::get(int layer, std::int64_t sample) {
  if (const auto found = cache_.find({layer, sample}); found != cache_.end()) return found->second;
  OpenFile& file = file_for_reading(layer);
  at::Tensor value = at::empty({sample_tokens_[static_cast<std::size_t>(sample)], hidden_size_}, dtype_);
  auto* bytes = static_cast<char*>(value.mutable_data_ptr());
  std::int64_t offset = offsets_[static_cast<std::size_t>(sample)];
  std::int64_t left = sample_bytes(sample);
  while (left > 0) {
    const ssize_t got = ::pread(file.descriptor, bytes, static_cast<std::size_t>(left), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_file_error("read", file.path, errno);
    if (got == 0) throw base::InvalidInput(base::concat(file.path.string(), ": shorter than it was"));
    bytes += got;
    offset += got;
    left -= got;
  }
  return value;
}

void ActivationStore::remember(int layer, std::int64_t sample, const at::Tensor& value) {
  const std::int64_t bytes = sample_bytes(sample);
  while (cached_bytes_ + bytes > cache_bytes_ && !cache_.empty() && cache_.begin()->first.first <= layer) {
    cached_bytes_ -= sample_bytes(cache_.begin()->first.second);
    cache_.erase(cache_.begin());
  }
  if (cached_bytes_ + bytes > cache_bytes_) return;
  // Shares storage with the caller's tensor, which nobody writes to.
  cache_[{layer, sample}] = value;
  cached_bytes_ += bytes;
}

void ActivationStore::finish(int layer) {
  const auto open = writing_.find(layer);
  if (open == writing_.end()) return;
  const std::filesystem::path temporary = open->second->path;
  writing_.erase(open);
  base::publish_file(temporary, file_of_(layer));
}

bool ActivationStore::finished(int layer) const {
  std::error_code ignored;
  return std::filesystem::file_size(file_of_(layer), ignored) == static_cast<std::uintmax_t>(file_bytes()) &&
         !ignored;
}

void ActivationStore::drop(int layer) {
  for (auto entry = cache_.lower_bound({layer, 0}); entry != cache_.end() && entry->first.first == layer;) {
    cached_bytes_ -= sample_bytes(entry->first.second);
    entry = cache_.erase(entry);
  }
  reading_.erase(layer);
  std::error_code ignored;
  std::filesystem::remove(file_of_(layer), ignored);
}

}  // namespace kvcal::calib
