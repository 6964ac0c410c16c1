// formats/internal/hdf5_handle.h: HDF5's C API, wrapped once:
// owners of identifiers, checked calls, silent errors, one lock.
//
// Debian's HDF5 is not thread-safe: every use of it, from the first call to the last close, happens while an
// Hdf5Session lives.
#pragma once

#define H5_USE_110_API
#include <hdf5.h>

#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace kvcal::formats {

/// Holds the process-wide lock, and keeps HDF5 from printing its errors. Declare it before the handles.
class Hdf5Session {
 public:
  Hdf5Session();
  ~Hdf5Session();
  Hdf5Session(const Hdf5Session&) = delete;
  Hdf5Session& operator=(const Hdf5Session&) = delete;

 private:
  std::unique_lock<std::recursive_mutex> lock_;
  H5E_auto2_t printer_ = nullptr;
  void* printer_data_ = nullptr;
};

/// Throws InvalidInput: `what` (file, then object and action), then HDF5's own innermost reason.
[[noreturn]] void throw_hdf5(std::string_view what);

/// The result of an HDF5 call that is negative where it failed.
template <typename Result>
Result hdf5_check(Result result, std::string_view what) {
  if (result < 0) throw_hdf5(what);
  return result;
}

/// Owns an identifier, and closes it with the function that belongs to its kind.
class Hdf5Handle {
 public:
  using Closer = herr_t (*)(hid_t);
  /// Throws where the call that gave `id` failed.
  Hdf5Handle(hid_t id, Closer closer, std::string_view what) : id_(hdf5_check(id, what)), closer_(closer) {}
  ~Hdf5Handle() {
    if (id_ >= 0) closer_(id_);
  }
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), closer_(other.closer_) {}
  Hdf5Handle& operator=(Hdf5Handle&&) = delete;
  Hdf5Handle(const Hdf5Handle&) = delete;
  Hdf5Handle& operator=(const Hdf5Handle&) = delete;

  [[nodiscard]] hid_t get() const { return id_; }
  /// Closes now. Throws where that fails (a file's last writes happen then).
  void close(std::string_view what) { hdf5_check(closer_(std::exchange(id_, -1)), what); }

 private:
  hid_t id_;
  Closer closer_;
};

}  // namespace kvcal::formats
