#include "apps/json_output.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/file.h"
#include "base/new_file.h"

namespace kvcal::apps {

using base::concat;
using base::SystemError;

namespace {

// A pipe or a device (/dev/null, bash's >(command)): renaming a file to its name would replace it.
bool is_device(const std::string& file) {
  std::error_code error;
  return std::filesystem::exists(file, error) && !std::filesystem::is_regular_file(file, error);
}

}  // namespace

void print(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      throw SystemError(concat("cannot write to standard output: ", base::errno_text(errno)));
    }
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

std::string text_of(const Json& value) {
  // nlohmann writes null for what is not finite, and the shortest digits that read back as the same double.
  return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void OutputFile::check(const std::vector<std::filesystem::path>& inputs) const {
  if (!wanted()) return;
  const std::filesystem::path path(file_);
  for (const std::filesystem::path& input : inputs) {
    if (!input.empty() && base::lies_in(path, input))
      throw base::WrongUsage(concat(option_, " ", file_, " is an input of the command; name another file"));
  }
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    throw SystemError(concat(option_, " ", file_, " is a folder; name a file in it"));
  }
  if (is_device(file_)) return;
  const std::filesystem::path target = base::behind_links(path);
  const std::filesystem::path folder =
      target.has_parent_path() ? target.parent_path() : std::filesystem::path(".");
  if (::access(folder.c_str(), W_OK | X_OK) != 0) {
    throw SystemError(concat(option_, " ", file_, ": cannot write into the folder ", folder.string(), ": ",
                             base::errno_text(errno), "; name another file"));
  }
}

void OutputFile::write(std::string_view text) const {
  if (!wanted()) return;
  if (is_device(file_)) {
    errno = 0;
    std::ofstream device(file_);
    if (!(device << text << std::flush)) base::throw_system_error("write", file_, errno);
  } else {
    base::write_file_atomically(base::behind_links(file_), text);
  }
}

void JsonOutput::check(const std::vector<std::filesystem::path>& inputs) const {
  if (!to_stdout()) file_.check(inputs);
}

void check_outputs(const JsonOutput& json, const OutputFile& html,
                   const std::vector<std::filesystem::path>& inputs) {
  json.check(inputs);
  html.check(inputs);
  if (json.wanted() && html.wanted() && base::lies_in(json.file(), html.file()))
    throw base::WrongUsage(concat("--json and --html name the same file, ", html.file(), "; name two"));
}

void JsonOutput::write(const Json& value) const {
  if (!wanted()) return;
  if (to_stdout())
    print(text_of(value));
  else
    file_.write(text_of(value));
}

}  // namespace kvcal::apps
