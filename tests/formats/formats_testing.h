// tests/formats/formats_testing.h: what the tests of file formats share: a folder of their own, errors by
// their text.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/file.h"

namespace kvcal::formats::testing {

/// A folder that goes with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "kvcal-formats-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw base::SystemError("cannot make a temporary folder");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  [[nodiscard]] std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void write_bytes(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// The message of the kvcal error that the call throws; fails the test where it throws none.
template <typename Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const base::Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

/// Asserts that the call throws a kvcal error whose text holds `part`.
#define EXPECT_ERROR(call, part)                                                    \
  do {                                                                              \
    const std::string message = kvcal::formats::testing::error_of([&] { call; });   \
    EXPECT_NE(message.find(part), std::string::npos) << "the message: " << message; \
  } while (false)

}  // namespace kvcal::formats::testing
