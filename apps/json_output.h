// apps/json_output.h: results to standard output, to --json FILE and to --html FILE.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace kvcal::apps {

/// Keys stay in the order in which they were added: the order in which a person wants to read them.
using Json = nlohmann::ordered_json;

/// Writes all of `text` to standard output.
/// Throws base::SystemError where that fails (a full disk, a closed pipe).
void print(std::string_view text);

/// The JSON text of `value`: numbers exact to the last bit,
/// null for NaN and infinity, invalid UTF-8 replaced.
[[nodiscard]] std::string text_of(const Json& value);

/// A file that a result goes to, named by an option; empty for none.
class OutputFile {
 public:
  OutputFile() = default;
  OutputFile(std::string option, std::string file) : option_(std::move(option)), file_(std::move(file)) {}

  [[nodiscard]] bool wanted() const { return !file_.empty(); }
  [[nodiscard]] const std::string& file() const { return file_; }
  [[nodiscard]] const std::string& option() const { return option_; }

  /// Throws base::SystemError where write() could not work, so that nobody learns it after hours of work, and
  /// base::WrongUsage where it would replace one of the command's inputs.
  void check(const std::vector<std::filesystem::path>& inputs) const;
  /// Writes the text, a file as a whole or not at all; nothing where none was asked for. Throws base::SystemError.
  void write(std::string_view text) const;

 private:
  std::string option_, file_;
};

/// The file of --json: empty for none, "-" for standard output.
class JsonOutput {
 public:
  JsonOutput() = default;
  explicit JsonOutput(std::string file) : file_("--json", std::move(file)) {}

  [[nodiscard]] bool wanted() const { return file_.wanted(); }
  [[nodiscard]] bool to_stdout() const { return file_.file() == "-"; }
  [[nodiscard]] const std::string& file() const { return file_.file(); }

  /// As OutputFile's.
  void check(const std::vector<std::filesystem::path>& inputs) const;
  void write(const Json& value) const;

 private:
  OutputFile file_;
};

/// Both of them, and that they are not one file.
void check_outputs(const JsonOutput& json, const OutputFile& html,
                   const std::vector<std::filesystem::path>& inputs);

}  // namespace kvcal::apps
