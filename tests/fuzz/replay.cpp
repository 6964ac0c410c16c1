// replay_NAME [--taken|--refused|--either] PATH...: reads files, or all files below folders, and says of each what came of it, how long it
// took and how much memory. After --taken or --refused that is what must come of those that follow. Fails (exit code 1) where something
// else came, an exception escaped that is no refusal, or a file took more than 10 s of a CPU or 1 GiB; a file that kills the process is the
// last one named.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "fuzz/target.h"

namespace {

namespace fs = std::filesystem;
using namespace kvcal;

constexpr double kMostSeconds = 10;
constexpr double kMostMebibytes = 1024;

enum class Expected { either, taken, refused };

/// A line of /proc/self/status that is in KiB: VmRSS, or VmHWM, its peak.
double mebibytes(std::string_view field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field)) return std::strtod(line.c_str() + field.size() + 1, nullptr) / 1024;
  }
  return 0;
}

/// Where the kernel can't do this (it may be built without), the peak is that of the whole run.
void reset_peak() {
  std::ofstream("/proc/self/clear_refs") << "5";
}

/// What is wrong with the way a file was read; nullopt: nothing.
std::optional<std::string> fault(std::span<const std::byte> bytes, Expected expected, std::string& outcome) {
  try {
    const std::string reason = fuzz::refusal(bytes);
    outcome = reason.empty() ? "taken" : "refused: " + reason;
    if (expected == Expected::taken && !reason.empty()) return "expected to be taken";
    if (expected == Expected::refused && reason.empty()) return "expected to be refused";
  } catch (const std::exception& error) {
    outcome = base::concat("escaped: ", error.what());
    return "not a refusal";
  }
  return std::nullopt;
}

bool replay(const fs::path& file, Expected expected) {
  const std::string text = base::read_text_file(file);
  std::printf("%s: ", file.c_str());
  std::fflush(stdout);
  reset_peak();
  const double before = mebibytes("VmRSS:");
  const std::clock_t start = std::clock();
  std::string outcome;
  std::optional<std::string> wrong = fault(std::as_bytes(std::span(text)), expected, outcome);
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  const double grown = std::max(0.0, mebibytes("VmHWM:") - before);
  if (!wrong && seconds > kMostSeconds) wrong = "too slow";
  if (!wrong && grown > kMostMebibytes) wrong = "too much memory";
  // Reasons quote what the file holds, at length at times.
  constexpr std::size_t kShown = 300;
  std::printf("%.2f s, %.0f MiB, %s%s\n", seconds, grown, outcome.substr(0, kShown).c_str(),
              wrong ? (" -- FAILED: " + *wrong).c_str() : "");
  std::fflush(stdout);
  return !wrong;
}

std::vector<fs::path> files_below(const fs::path& path) {
  if (!fs::is_directory(path)) return {path};
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(path))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::ranges::sort(files);
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t files = 0;
  std::size_t failed = 0;
  Expected expected = Expected::either;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--taken" || argument == "--refused" || argument == "--either") {
      expected = argument == "--taken"     ? Expected::taken
                 : argument == "--refused" ? Expected::refused
                                           : Expected::either;
      continue;
    }
    for (const fs::path& file : files_below(argument)) {
      ++files;
      failed += replay(file, expected) ? 0 : 1;
    }
  }
  std::printf("%zu files, %zu failed\n", files, failed);
  return files > 0 && failed == 0 ? 0 : 1;
}
