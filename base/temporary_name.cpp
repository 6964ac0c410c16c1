#include "base/temporary_name.h"

#include <fcntl.h>
#include <unistd.h>

#include <random>
#include <string>

#include "base/error.h"

namespace kvcal::base {

std::filesystem::path temporary_path(const std::filesystem::path& path) {
  std::random_device device;
  std::string digits;
  for (std::size_t i = 0; i < kTemporaryDigits; ++i) digits += "0123456789abcdef"[device() % 16];
  return path.parent_path() / concat(".", path.filename().string(), ".", digits, kTemporaryEnding);
}

void sync_folder(const std::filesystem::path& folder) {
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  (void)::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace kvcal::base
