#include "formats/internal/hdf5_handle.h"

#include "base/error.h"
#include "formats/codebook.h"

namespace kvcal::formats {
namespace {

std::recursive_mutex& hdf5_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

herr_t take_first(unsigned /*position*/, const H5E_error2_t* error, void* reason) {
  auto& text = *static_cast<const char**>(reason);
  if (text == nullptr) text = error->desc;
  return 0;
}

}  // namespace

void skip_hdf5_exit() {
  const std::scoped_lock lock(hdf5_mutex());
  static_cast<void>(H5dont_atexit());
}

Hdf5Session::Hdf5Session() : lock_(hdf5_mutex()) {
  H5Eget_auto2(H5E_DEFAULT, &printer_, &printer_data_);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

Hdf5Session::~Hdf5Session() {
  H5Eclear2(H5E_DEFAULT);
  H5Eset_auto2(H5E_DEFAULT, printer_, printer_data_);
}

void throw_hdf5(std::string_view what) {
  const char* reason = nullptr;
  // Upward begins at the call that failed first, deep inside, which is the one that says why.
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, static_cast<void*>(&reason));
  throw base::InvalidInput(
      base::concat(what, reason != nullptr ? base::concat(" (HDF5: ", reason, ")") : ""));
}

}  // namespace kvcal::formats
