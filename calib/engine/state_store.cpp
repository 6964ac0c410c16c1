#include "calib/engine/state_store.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace kvcal::calib {
namespace {

int open_scratch(const std::filesystem::path& folder) {
  std::string name = (folder / "kvcal-scratch-XXXXXX").string();
  const int file = ::mkostemp(name.data(), O_CLOEXEC);
  if (file < 0) base::throw_system_error("make a scratch file in", folder, errno);
  ::unlink(name.c_str());
  return file;
}

std::int64_t bytes_of(std::int64_t tokens, std::int64_t size, at::ScalarType dtype) {
  return tokens * size * static_cast<std::int64_t>(at::elementSize(dtype));
}

}  // namespace

StateStore::StateStore(std::int64_t memory_bytes, std::filesystem::path folder)
    : folder_(std::move(folder)), memory_left_(memory_bytes) {}

StateStore::~StateStore() {
  if (file_ >= 0) ::close(file_);
}

// What the slot held is given back first: a slot of one size keeps its place.
void StateStore::put(std::int64_t slot, const at::Tensor& state) {
  State entry{{}, -1, state.size(0), state.size(1), state.scalar_type()};
  {
    const std::scoped_lock lock(mutex_);
    if (const auto held = states_.find(slot); held != states_.end()) {
      release(held->second);
      states_.erase(held);
    }
    const std::int64_t bytes = bytes_of(entry.tokens, entry.size, entry.dtype);
    if (bytes <= memory_left_) {
      memory_left_ -= bytes;
      entry.in_memory = state;
    } else {
      entry.offset = place_in_file(bytes);
    }
    states_[slot] = entry;
  }
  if (!entry.in_memory.defined()) write(entry, state);
}

at::Tensor StateStore::rows(std::int64_t slot, std::int64_t begin, std::int64_t end) const {
  const State state = find(slot);
  if (state.in_memory.defined()) return state.in_memory.slice(0, begin, end);
  at::Tensor value = at::empty({end - begin, state.size}, state.dtype);
  auto* to = static_cast<char*>(value.mutable_data_ptr());
  std::int64_t at = state.offset + bytes_of(begin, state.size, state.dtype);
  for (auto left = static_cast<std::int64_t>(value.nbytes()); left > 0;) {
    const ssize_t got = ::pread(file_, to, static_cast<std::size_t>(left), at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) base::throw_system_error("read the scratch file in", folder_, got < 0 ? errno : EIO);
    to += got, at += got, left -= got;
  }
  return value;
}

at::Tensor StateStore::get(std::int64_t slot) const {
  return rows(slot, 0, find(slot).tokens);
}

void StateStore::drop(std::int64_t slot) {
  const std::scoped_lock lock(mutex_);
  const auto held = states_.find(slot);
  if (held == states_.end()) return;
  release(held->second);
  states_.erase(held);
}

StateStore::State StateStore::find(std::int64_t slot) const {
  const std::scoped_lock lock(mutex_);
  const auto held = states_.find(slot);
  if (held == states_.end()) throw base::Error(base::concat("no state in slot ", slot));
  return held->second;
}

void StateStore::release(const State& state) {
  const std::int64_t bytes = bytes_of(state.tokens, state.size, state.dtype);
  if (state.in_memory.defined())
    memory_left_ += bytes;
  else
    holes_.emplace(bytes, state.offset);
}

std::int64_t StateStore::place_in_file(std::int64_t bytes) {
  if (file_ < 0) file_ = open_scratch(folder_);
  if (const auto hole = holes_.find(bytes); hole != holes_.end()) {
    const std::int64_t offset = hole->second;
    holes_.erase(hole);
    return offset;
  }
  return std::exchange(file_end_, file_end_ + bytes);
}

void StateStore::write(const State& state, const at::Tensor& value) const {
  const at::Tensor whole = value.contiguous();
  const auto* from = static_cast<const char*>(whole.const_data_ptr());
  std::int64_t at = state.offset;
  for (auto left = static_cast<std::int64_t>(whole.nbytes()); left > 0;) {
    const ssize_t put = ::pwrite(file_, from, static_cast<std::size_t>(left), at);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) base::throw_system_error("write the scratch file in", folder_, put < 0 ? errno : EIO);
    from += put, at += put, left -= put;
  }
}

}  // namespace kvcal::calib
