// calib/engine/state_store.h: the latest hidden state of many sequences: in memory while there is room, the
// rest in a scratch file.
//
// The file has no name from the start: whatever ends the program, nothing of it is left.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>

namespace kvcal::calib {

/// A tensor for each slot, slots being any numbers. put() and get() may be called from several threads at once,
/// for different slots.
class StateStore {
 public:
  /// memory_bytes: what may stay in memory; folder: where the scratch file is made once it is needed.
  StateStore(std::int64_t memory_bytes, std::filesystem::path folder);
  ~StateStore();
  StateStore(const StateStore&) = delete;
  StateStore& operator=(const StateStore&) = delete;

  /// state: [tokens, size], on the CPU; takes the place of what the slot held. Throws SystemError where the
  /// scratch file cannot be made or the disk is full.
  void put(std::int64_t slot, const at::Tensor& state);
  /// Rows [begin, end) of what put() was given, to the bit. Throws SystemError.
  [[nodiscard]] at::Tensor rows(std::int64_t slot, std::int64_t begin, std::int64_t end) const;
  [[nodiscard]] at::Tensor get(std::int64_t slot) const;
  /// The slot is empty from here on.
  void drop(std::int64_t slot);

 private:
  struct State {
    at::Tensor in_memory;      // undefined: in the file
    std::int64_t offset = -1;  // there
    std::int64_t tokens = 0, size = 0;
    at::ScalarType dtype = at::kFloat;
  };
  [[nodiscard]] State find(std::int64_t slot) const;
  void release(const State& state);
  [[nodiscard]] std::int64_t place_in_file(std::int64_t bytes);
  void write(const State& state, const at::Tensor& value) const;

  std::filesystem::path folder_;
  mutable std::mutex mutex_;  // of all that follows
  std::int64_t memory_left_;
  int file_ = -1;
  std::int64_t file_end_ = 0;
  std::multimap<std::int64_t, std::int64_t> holes_;  // of the file: bytes to offset
  std::map<std::int64_t, State> states_;
};

}  // namespace kvcal::calib
