#include "calib/engine/activation_store.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/checksum.h"
#include "base/error.h"
#include "base/file.h"
#include "calib/engine/checkpoints.h"

namespace kvcal::calib {
namespace {

constexpr std::int64_t kChecksumBytes = sizeof(std::uint64_t);

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

}  // namespace

std::int64_t activation_file_bytes(std::int64_t samples, std::int64_t tokens, std::int64_t hidden_size,
                                   at::ScalarType dtype) {
  return tokens * hidden_size * static_cast<std::int64_t>(at::elementSize(dtype)) + samples * kChecksumBytes;
}

/// A finished file, open, and its checksums.
class ActivationStore::ReadFile {
 public:
  ReadFile(std::filesystem::path path, std::int64_t samples, std::int64_t checksums_at)
      : path_(std::move(path)), descriptor_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) base::throw_system_error("open", path_, errno);
    try {
      read_checksums(samples, checksums_at);
    } catch (...) {
      ::close(descriptor_);
      throw;
    }
  }
  ~ReadFile() { ::close(descriptor_); }
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  void read(std::int64_t sample, std::int64_t offset, std::span<std::byte> bytes) const {
    base::read_whole_at(descriptor_, offset, bytes, path_);
    if (base::checksum(bytes) != checksums_[static_cast<std::size_t>(sample)])
      throw DamagedCheckpoint(path_, base::concat("sample ", sample, " is not what was written"));
  }

 private:
  void read_checksums(std::int64_t samples, std::int64_t at) {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) base::throw_system_error("read the size of", path_, errno);
    const std::int64_t expected = at + samples * kChecksumBytes;
    if (status.st_size != expected)
      throw DamagedCheckpoint(path_, base::concat(status.st_size, " bytes, expected ", expected));
    checksums_.resize(static_cast<std::size_t>(samples));
    base::read_whole_at(descriptor_, at, std::as_writable_bytes(std::span(checksums_)), path_);
  }

  std::filesystem::path path_;
  int descriptor_;
  std::vector<std::uint64_t> checksums_;
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

// Unfinished files are of no use to a later run and go with their NewFiles.
ActivationStore::~ActivationStore() = default;

std::int64_t ActivationStore::sample_bytes(std::int64_t sample) const {
  return sample_tokens_[static_cast<std::size_t>(sample)] * hidden_size_ *
         static_cast<std::int64_t>(at::elementSize(dtype_));
}

ActivationStore::Unfinished& ActivationStore::unfinished(int layer) {
  const std::scoped_lock lock(mutex_);
  auto& entry = writing_[layer];
  if (entry == nullptr) {
    std::vector<std::uint64_t> checksums(sample_tokens_.size());
    entry.reset(new Unfinished{base::NewFile(file_of_(layer)), std::move(checksums)});
  }
  return *entry;
}

const ActivationStore::ReadFile& ActivationStore::file_for_reading(int layer) {
  const std::scoped_lock lock(mutex_);
  auto& file = reading_[layer];
  if (file == nullptr) {
    file = std::make_unique<ReadFile>(file_of_(layer), static_cast<std::int64_t>(sample_tokens_.size()),
                                      offsets_.back());
  }
  return *file;
}

void ActivationStore::put(int layer, std::int64_t sample, const at::Tensor& value) {
  const at::Tensor plain = value.to(at::kCPU, dtype_).contiguous();
  if (static_cast<std::int64_t>(plain.nbytes()) != sample_bytes(sample))
    throw base::Error("a hidden state of the wrong size");
  const auto index = static_cast<std::size_t>(sample);
  Unfinished& entry = unfinished(layer);
  entry.file.write_at(offsets_[index], bytes_of(plain));
  entry.checksums[index] = base::checksum(bytes_of(plain));
  remember(layer, sample, plain);
}

at::Tensor ActivationStore::get(int layer, std::int64_t sample) {
  {
    const std::scoped_lock lock(mutex_);
    if (const auto found = cache_.find({layer, sample}); found != cache_.end()) return found->second;
  }
  const auto index = static_cast<std::size_t>(sample);
  at::Tensor value = at::empty({sample_tokens_[index], hidden_size_}, dtype_);
  file_for_reading(layer).read(sample, offsets_[index],
                               {static_cast<std::byte*>(value.mutable_data_ptr()), value.nbytes()});
  return value;
}

void ActivationStore::remember(int layer, std::int64_t sample, const at::Tensor& value) {
  const std::int64_t bytes = sample_bytes(sample);
  const std::scoped_lock lock(mutex_);
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
  const std::scoped_lock lock(mutex_);
  const auto entry = writing_.find(layer);
  if (entry == writing_.end()) return;
  entry->second->file.write_at(offsets_.back(), std::as_bytes(std::span(entry->second->checksums)));
  entry->second->file.publish();
  writing_.erase(entry);
}

void ActivationStore::drop(int layer) {
  const std::scoped_lock lock(mutex_);
  for (auto entry = cache_.lower_bound({layer, 0}); entry != cache_.end() && entry->first.first == layer;) {
    cached_bytes_ -= sample_bytes(entry->first.second);
    entry = cache_.erase(entry);
  }
  reading_.erase(layer);
  std::error_code ignored;
  std::filesystem::remove(file_of_(layer), ignored);
}

}  // namespace kvcal::calib
