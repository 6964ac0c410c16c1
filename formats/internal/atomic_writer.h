// formats/internal/atomic_writer.h: a file written piece by piece that appears whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

namespace kvcal::formats {

/// write() as often as needed, then publish() once; destroyed without it, nothing is left behind.
class AtomicWriter {
 public:
  /// Opens a temporary name beside `path`. Throws SystemError.
  explicit AtomicWriter(const std::filesystem::path& path);
  ~AtomicWriter();
  AtomicWriter(const AtomicWriter&) = delete;
  AtomicWriter& operator=(const AtomicWriter&) = delete;

  /// Throws SystemError (a full disk).
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Syncs and renames. Throws SystemError.
  void publish();

 private:
  [[noreturn]] void fail(int error_number) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

}  // namespace kvcal::formats
